"""Which modules of a model are tracked: by default those that were trained; and of every other one, why it is not."""

import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..coverage import Coverage, Untracked
from ..errors import UnsupportedModuleError
from ..registry import LAYER_KINDS
from .base import LayerKind, kind_of, kinds_of
from .modules import PEFT_PREFIX, Holders, TrackedModule, base_model, has_adapter, matches, tracked_name


_HEAD_NAMES = ("score", "classifier", "classification_head", "qa_outputs")
_ON_PARAMETER = (
    "its LoRA adapter is on a bare parameter (target_parameters), whose matrices are multiplied with each other and "
    "not with tokens, so their gradients cannot be told apart by example; adapt modules (target_modules) instead"
)
_HEAD = "the output head, which 'all-linear' leaves out: name it in target_modules, or pass exclude_modules=[]"


def tracked_modules(
    model: nn.Module, target_modules: str | list[str] = "all-linear", exclude_modules: str | list[str] | None = None
) -> list[TrackedModule]:
    """The layers of `model` that an index records, in the model's own order.

    `"all-linear"` takes the layers that are trained (`requires_grad`; all, where nothing is) and leaves out the output
    head, unless the head is all that is trained. `"all"` takes parameters of every kind, the head's too. A model that
    carries LoRA adapters is tracked on the A and B matrices of its active ones and nowhere else; the patterns then
    select the adapted layers.

    Args:
        model (`nn.Module`): the unwrapped model.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`): as in `InfluenceConfig`.
        exclude_modules (`str` or `list[str]`, *optional*): as in `InfluenceConfig`.

    Raises:
        [`~lorif_hf.errors.UnsupportedModuleError`]: nothing matches, or a match is of a kind that cannot be tracked.
    """
    return Selection(model, target_modules, exclude_modules).modules


class Selection:
    """What is tracked of a model. The arguments are those of [`tracked_modules`], and `trained`: parameters that were
    trained, whatever `requires_grad` says by now.

    Attributes:
        trained (`dict[str, nn.Parameter]`): the parameters that are trained, by name, tied ones once.
        modules (`list[TrackedModule]`): what is tracked.
    """

    def __init__(
        self,
        model: nn.Module,
        target_modules: str | list[str],
        exclude_modules: str | list[str] | None = None,
        trained: Container[str] = (),
    ):
        self.model, self.target, self.exclude = model, target_modules, exclude_modules
        self.trained = _trained(model, trained)
        self._trained = {id(parameter) for parameter in self.trained.values()}
        self._holders = Holders(model)
        self._lora = _lora_layers(model)
        self._heads = _heads(model)
        self._linear, self._all = target_modules == "all-linear", target_modules in ("all-linear", "all")
        _refuse_other_adapters(model, self._lora)
        modules = list(self._adapters() if self._lora else self._layers(self._left_out()))
        if not modules and self._linear and not self._lora:
            modules = list(self._layers(set()))  # a probe: the head is all that is trained
        if not modules:
            raise self._nothing()
        self.modules = modules
        weights = {id(tracked.weight): tracked.name for tracked in modules}
        # Now, and by name: an offloaded module has another parameter after each call.
        self._module_of = {name: weights.get(id(parameter)) for name, parameter in self.trained.items()}
        self._reasons = {
            name: self.why_not(name, self.trained[name]) for name, module in self._module_of.items() if module is None
        }

    def why_not(self, name: str, parameter: Tensor) -> str:
        """Why a trained parameter that is none of the tracked weights is not tracked."""
        (owner, module), *_ = self._holders.of(parameter) or [(name.rpartition(".")[0], self.model)]
        own_name = next((n for n, held in module._parameters.items() if held is parameter), "")
        kind = kind_of(module, own_name)
        if self._lora:
            layer = next(
                (layer for n, layer in self._lora.items() if name.startswith(n.removeprefix(PEFT_PREFIX))), None
            )
            if layer is not None and _is_on_parameter(layer):
                return _ON_PARAMETER
            if ".lora_embedding_" in name:
                return "LoRA matrices of an Embedding, which is of no kind that is tracked"
            return "beside the LoRA matrices, which alone are tracked"
        if type(module).__name__ == "ParametrizationList":
            return "a weight is computed from it (torch.nn.utils.parametrizations)"
        if kind is None:
            return f"the {own_name} of a {type(module).__name__}, which is of no kind that is tracked"
        if self._linear and not kind.linear:
            return f"of the kind '{kind.name}', which 'all-linear' leaves out: target_modules='all' takes it"
        others = self._strangers(module, own_name)
        if others:
            return others
        if self.exclude is not None and matches(owner, self.exclude):
            return f"left out by exclude_modules={self.exclude!r}"
        if id(module) in self._left_out():
            return _HEAD
        return f"not selected by target_modules={self.target!r}"

    def coverage(self, dropped: Mapping[str, str] | None = None) -> Coverage:
        """How much of what was trained is tracked.

        Args:
            dropped (`Mapping[str, str]`, *optional*): modules that are not tracked after all, by name -> why.
        """
        dropped = dropped or {}
        tracked, untracked = 0, []
        for name, parameter in self.trained.items():
            module = self._module_of[name]
            if module is not None and module not in dropped:
                tracked += parameter.numel()
            else:
                reason = self._reasons[name] if module is None else dropped[module]
                untracked.append(Untracked(name, parameter.numel(), reason))
        return Coverage(tracked, sum(parameter.numel() for parameter in self.trained.values()), untracked)

    def _layers(self, left_out: set[int]) -> Iterator[TrackedModule]:
        taken: set[int] = set()
        for full_name, module in self.model.named_modules():
            owner = full_name.removeprefix(PEFT_PREFIX)
            if not owner or id(module) in left_out:
                continue
            for parameter, kind in self._chosen(owner, module):
                tracked = self._tracked(owner, module, parameter, kind)
                if id(tracked.weight) not in taken:  # two modules of one weight are one layer
                    taken.add(id(tracked.weight))
                    yield tracked

    def _chosen(self, owner: str, module: nn.Module) -> Iterator[tuple[str, LayerKind]]:
        """The parameters of a module that are asked for, and their kinds."""
        kinds = kinds_of(module)
        for parameter, kind in kinds.items():
            if self._excluded(owner, parameter):
                continue
            if not self._all:
                if _asked_for(owner, parameter, self.target):
                    yield parameter, kind
            elif (kind.linear or not self._linear) and id(module._parameters[parameter]) in self._trained:
                if not self._strangers(module, parameter):
                    yield parameter, kind
        held = next(module.parameters(recurse=False), None)
        named = not self._all and matches(owner, self.target) and not self._excluded(owner, "weight")
        if named and held is not None and not kinds:
            raise _unsupported(owner, module)

    def _excluded(self, owner: str, parameter: str) -> bool:
        patterns = self.exclude
        return patterns is not None and (matches(owner, patterns) or matches(tracked_name(owner, parameter), patterns))

    def _adapters(self) -> Iterator[TrackedModule]:
        for full_name, layer in self._lora.items():
            name = full_name.removeprefix(PEFT_PREFIX)
            if self.exclude is not None and matches(name, self.exclude):
                continue
            if not self._all and not matches(name, self.target):
                continue
            if _is_on_parameter(layer):
                if self._all:
                    continue
                raise UnsupportedModuleError(f"'{name}' cannot be tracked: {_ON_PARAMETER}.")
            _check_adapter(name, layer)
            for adapter in layer.active_adapters:
                for side in ("lora_A", "lora_B"):
                    matrices = getattr(layer, side)
                    if adapter in matrices and not isinstance(matrices[adapter], nn.Module):
                        raise UnsupportedModuleError(
                            f"The adapter '{adapter}' of '{name}' is a {type(layer).__name__}, which keeps its "
                            "matrices as bare parameters (AdaLoRA). Train a LoRA adapter instead."
                        )
                    if adapter in matrices:
                        yield self._matrix(f"{name}.{side}.{adapter}", matrices[adapter])

    def _matrix(self, name: str, module: nn.Module) -> TrackedModule:
        """A matrix of a LoRA adapter, which is a module."""
        kind = kind_of(module)
        if kind is None:
            raise _unsupported(name, module)
        return self._tracked(name, module, "weight", kind)

    def _tracked(self, owner: str, module: nn.Module, parameter: str, kind: LayerKind) -> TrackedModule:
        others = self._strangers(module, parameter)
        if others:
            raise UnsupportedModuleError(f"Module '{owner}' cannot be tracked: {others}. Untie them, or leave it out.")
        tracked = TrackedModule.of(owner, kind, module, self._holders, parameter=parameter)
        if not tracked.weight.is_floating_point():
            raise UnsupportedModuleError(
                f"Module '{owner}' holds its weight as {str(tracked.weight.dtype)[6:]}: a quantised weight is not "
                "trained. Index the adapter that was trained over it, or leave it out with exclude_modules."
            )
        return tracked

    def _strangers(self, module: nn.Module, parameter: str) -> str | None:
        """What is said of a weight that modules of other kinds use too: their part of its gradient is not recorded."""
        weight = module._parameters[parameter]
        kind = kind_of(module, parameter)
        strangers = [
            f"'{name}' ({type(other).__name__})"
            for name, other in self._holders.of(weight)
            if all(kind_of(other, n) is not kind for n, held in other._parameters.items() if held is weight)
        ]
        return (
            f"its weight is also that of {', '.join(strangers)}, whose use of it is not recorded"
            if strangers
            else None
        )

    def _left_out(self) -> set[int]:
        """ids of the output heads, where the user asked for "all-linear"; `exclude_modules=[]` has them in."""
        return self._heads if self._linear and self.exclude != [] else set()

    def _nothing(self) -> UnsupportedModuleError:
        if self._lora and self._all and self.exclude is None:
            return UnsupportedModuleError(f"No layer of the PEFT model can be tracked: {_ON_PARAMETER}.")
        candidates = self._lora or {name: module for name, module in self.model.named_modules() if name}
        supported = [name.removeprefix(PEFT_PREFIX) for name, m in candidates.items() if self._lora or kinds_of(m)]
        others = f"{len(supported)} could be, for example {', '.join(supported[:3])}" if supported else "it has none"
        frozen = ""
        if supported and self._all:
            frozen = (
                f" What is trained is {', '.join(list(self.trained)[:3])}{', ...' if len(self.trained) > 3 else ''}."
            )
        return UnsupportedModuleError(
            f"target_modules={self.target!r} with exclude_modules={self.exclude!r} selects no module of "
            f"{type(self.model).__name__}: {others}. Supported are {_supported()}.{frozen}"
        )


def inactive_adapters(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Adapters that take no part in a model's forward pass, though their matrices are asked for.

    Args:
        model (`nn.Module`): the unwrapped model.
        names (`Iterable[str]`): of modules, LoRA matrices among them.

    Returns:
        `dict[str, list[str]]`: such an adapter -> those that are active where it should be.
    """
    layers = {name.removeprefix(PEFT_PREFIX): layer for name, layer in _lora_layers(model).items()}
    inactive = {}
    for name in names:
        owner, _, rest = name.rpartition(".lora_")
        adapter = rest.partition(".")[2]
        if owner in layers:
            active = [] if layers[owner].disable_adapters else list(layers[owner].active_adapters)
            if adapter not in active:
                inactive[adapter] = active
    return inactive


def _trained(model: nn.Module, known: Container[str]) -> dict[str, nn.Parameter]:
    """What training changes: what has `requires_grad`. Of a model that was loaded with everything frozen, what must
    have been trained: its adapters, or else all of it."""
    parameters = {name.removeprefix(PEFT_PREFIX): p for name, p in model.named_parameters()}
    trained = {name: p for name, p in parameters.items() if p.requires_grad or name in known}
    if trained:
        return trained
    adapters = {
        id(parameter)
        for layer in _lora_layers(model).values()
        for side in layer.adapter_layer_names
        for parameter in _parameters(getattr(layer, side, None))
    }
    return {n: p for n, p in parameters.items() if p.is_floating_point() and (not adapters or id(p) in adapters)}


def _parameters(part: Any) -> Iterator[nn.Parameter]:
    """The parameters of a part of an adapter, which is a dict of modules or of parameters."""
    if isinstance(part, nn.Module):
        yield from part.parameters()


def _heads(model: nn.Module) -> set[int]:
    """ids of the modules that are output heads, or parts of them."""
    base = base_model(model)
    heads = [getattr(base, name, None) for name in _HEAD_NAMES]
    if hasattr(base, "get_output_embeddings"):
        heads.append(base.get_output_embeddings())
    return {id(module) for head in heads if isinstance(head, nn.Module) for module in head.modules()}


def _asked_for(owner: str, parameter: str, pattern: str | list[str]) -> bool:
    """Whether a pattern means a parameter: by its own name, or by its module's, but for a bias."""
    return matches(tracked_name(owner, parameter), pattern) or (parameter != "bias" and matches(owner, pattern))


def _unsupported(name: str, module: nn.Module) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"Module '{name}' is a {type(module).__name__}, which cannot be tracked. Supported are {_supported()}; leave "
        "it out with target_modules or exclude_modules."
    )


def _supported() -> str:
    return f"modules of the kinds {', '.join(sorted(kind.name for kind in LAYER_KINDS))}, and PEFT's LoRA matrices"


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name; none where PEFT was never imported."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.lora.layer import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _refuse_other_adapters(model: nn.Module, lora_layers: dict[str, Any]) -> None:
    configs: Any = getattr(model, "peft_config", None)
    if not configs or not has_adapter(model) or lora_layers:
        return
    methods = sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in configs.values()})
    raise UnsupportedModuleError(
        f"The PEFT model has no LoRA layer to track (its method is {', '.join(methods)}): only LoRA adapters are "
        "supported. Train a LoRA adapter instead. (Of a merged model every layer would be tracked, and none of them "
        "was trained.)"
    )


def _check_adapter(name: str, layer: Any) -> None:
    if layer.merged:
        raise UnsupportedModuleError(
            f"The LoRA adapter of '{name}' is merged into its base layer, so no gradient reaches its matrices. Call "
            "model.unmerge_adapter(), or model.merge_and_unload() to index the merged model as a whole."
        )
    if layer.disable_adapters:
        raise UnsupportedModuleError(f"The LoRA adapters of '{name}' are disabled: enable them to index them.")


def _is_on_parameter(layer: Any) -> bool:
    return type(layer).__name__ == "ParamWrapper"
