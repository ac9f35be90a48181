"""Which modules of a model are tracked: by default those that were trained; and of every other one, why it is not."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..coverage import Coverage, Untracked
from ..errors import UnsupportedModuleError
from ..registry import LAYER_KINDS
from .adapters import (
    ON_PARAMETER,
    adapted_layer,
    adapter_parameters,
    check_adapter,
    is_on_parameter,
    is_part,
    lora_layers,
    refuse_other_adapters,
)
from .base import LayerKind, go_together, kind_of, kinds_of
from .modules import PEFT_PREFIX, Holders, TrackedModule, base_model, matches, tracked_name


_HEAD_NAMES = ("score", "classifier", "classification_head", "qa_outputs")
_HEAD = "the output head, which 'all-linear' leaves out: name it in target_modules, or pass exclude_modules=[]"


def tracked_modules(
    model: nn.Module, target_modules: str | list[str] = "all-linear", exclude_modules: str | list[str] | None = None
) -> list[TrackedModule]:
    """The layers of `model` that an index records, in the model's own order.

    `"all-linear"` takes the layers that are trained (`requires_grad`; all, where nothing is) and leaves out the output
    head, unless the head is all that is trained. `"all"` takes parameters of every kind, the head's too. A model that
    PEFT adapted is tracked on what PEFT trains: the matrices of its active LoRA adapters, copies (`modules_to_save`);
    the patterns then select the adapted layers.

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
        self._lora = lora_layers(model)
        self._active = {id(p) for p in adapter_parameters(model)}
        self._inactive = {id(p) for p in adapter_parameters(model, active=False)} - self._active
        self._heads = _heads(model)
        self._linear, self._all = target_modules == "all-linear", target_modules in ("all-linear", "all")
        refuse_other_adapters(model, self._lora)
        self._check_adapters()
        modules = list(self._layers(self._left_out()))
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
        holders = self._holders.of(parameter) or [(name.rpartition(".")[0], self.model)]
        named = [(o, m, next((n for n, held in m._parameters.items() if held is parameter), "")) for o, m in holders]
        # Of several that hold it, one that could be tracked.
        able = (h for h in named if kind_of(*h[1:]) is not None and not self._strangers(*h[1:]))
        owner, module, own_name = next(able, named[0])
        kind = kind_of(module, own_name)
        if self._is_on_parameter(name):
            return ON_PARAMETER
        if type(module).__name__ == "ParametrizationList":
            return "a weight is computed from it (torch.nn.utils.parametrizations)"
        if kind is None:
            what = owner.rpartition(".")[2] if isinstance(module, nn.ParameterDict) else own_name
            return f"the {what} of a {type(module).__name__}, which is of no kind that is tracked"
        if self._linear and not kind.linear:
            return f"of the kind '{kind.name}', which 'all-linear' leaves out: target_modules='all' takes it"
        others = self._strangers(module, own_name)
        if others:
            return others
        if self._excluded(owner, own_name):
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

    def _check_adapters(self) -> None:
        """Refuse LoRA layers that are asked for and cannot be recorded."""
        for name, layer in self._lora.items():
            if self._excluded(name, "weight") or not (self._all or matches(name, self.target)):
                continue
            if not is_on_parameter(layer):
                check_adapter(name, layer)
            elif not self._all:
                raise UnsupportedModuleError(f"'{name}' cannot be tracked: {ON_PARAMETER}.")

    def _layers(self, left_out: set[int]) -> Iterator[TrackedModule]:
        taken: set[int] = set()
        for full_name, module in self.model.named_modules():
            owner = full_name.removeprefix(PEFT_PREFIX)
            if not owner or (id(module) in left_out and not _is_adapter(owner)):
                continue
            for parameter in self._chosen(owner, module):
                tracked = self._tracked(*self._leading(owner, module, parameter))
                if id(tracked.weight) not in taken:  # two modules of one weight are one layer
                    taken.add(id(tracked.weight))
                    yield tracked

    def _chosen(self, owner: str, module: nn.Module) -> Iterator[str]:
        """The parameters of a module that are asked for and are of a kind."""
        kinds = kinds_of(module)
        for parameter in kinds:
            held = module._parameters[parameter]
            leader, _, its_name, kind = self._leading(owner, module, parameter)
            excluded = self._excluded(owner, parameter) or self._excluded(leader, its_name)
            if excluded or id(held) in self._inactive or self._is_on_parameter(owner):
                continue
            if self._all:
                chosen = (kind.linear or not self._linear) and id(held) in self._trained
                chosen = chosen and not self._strangers(module, parameter)
            else:
                # Of what PEFT adapted, its own parts are meant, not what is frozen below them.
                chosen = _asked_for(owner, parameter, self.target) and (not self._active or id(held) in self._trained)
            if chosen:
                yield parameter
        held = next(module.parameters(recurse=False), None)
        asked = matches(owner, self.target) if not self._active else is_part(owner) and id(held) in self._active
        if (
            held is not None
            and kinds.keys() <= {"bias"}
            and not self._all
            and asked
            and _asked_for(owner, "weight", self.target)
        ):
            if not self._excluded(owner, "weight"):
                raise _unsupported(owner, module)

    def _excluded(self, owner: str, parameter: str) -> bool:
        names = adapted_layer(owner), tracked_name(owner, parameter), f"{owner}.{parameter}"
        return self.exclude is not None and any(matches(name, self.exclude) for name in names)

    def _is_on_parameter(self, name: str) -> bool:
        """Whether something of this name is a part of a LoRA adapter on a bare parameter."""
        layer = self._lora.get(adapted_layer(name))
        return layer is not None and is_on_parameter(layer)

    def _tracked(self, owner: str, module: nn.Module, parameter: str, kind: LayerKind) -> TrackedModule:
        """The parameter that a module calls so."""
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

    def _leading(self, owner: str, module: nn.Module, parameter: str) -> tuple[str, nn.Module, str, LayerKind]:
        """Under whose name a weight is tracked, and as what. One that an output head shares with an embedding is the
        embedding's: a head's inputs and output gradients would be kept whole, V x V."""
        weight, kind = module._parameters[parameter], kind_of(module, parameter)
        assert kind is not None
        for name, other in self._holders.of(weight) if kind.linear else ():
            for its_name in _names_of(weight, other):
                its_kind = kind_of(other, its_name)
                if its_kind is not None and not its_kind.linear and go_together(kind, its_kind):
                    return name, other, its_name, its_kind
        return owner, module, parameter, kind

    def _strangers(self, module: nn.Module, parameter: str) -> str | None:
        """What is said of a weight that others use too: their part of its gradient is not recorded.

        A module that contains this one only names the weight (BERT's heads: the bias of their decoder).
        """
        weight = module._parameters[parameter]
        kind = kind_of(module, parameter)
        strangers = []
        for name, other in self._holders.of(weight):
            kinds = [kind_of(other, its_name) for its_name in _names_of(weight, other)]
            only_names = set(kinds) <= {None, LAYER_KINDS.get("vector")} and any(p is module for p in other.modules())
            if not any(go_together(kind, its_kind) for its_kind in kinds) and not only_names:
                strangers.append(f"'{name}' ({type(other).__name__})")
        return (
            f"its weight is also that of {', '.join(strangers)}, whose use of it is not recorded"
            if strangers
            else None
        )

    def _left_out(self) -> set[int]:
        """ids of the output heads, where the user asked for "all-linear"; `exclude_modules=[]` has them in."""
        return self._heads if self._linear and self.exclude != [] else set()

    def _nothing(self) -> UnsupportedModuleError:
        on_parameters = [is_on_parameter(layer) for layer in self._lora.values()]
        if self._lora and self._all and all(on_parameters):
            return UnsupportedModuleError(f"No layer of the PEFT model can be tracked: {ON_PARAMETER}.")
        candidates: Any = self._lora or {name: module for name, module in self.model.named_modules() if name}
        supported = [name.removeprefix(PEFT_PREFIX) for name, m in candidates.items() if self._lora or kinds_of(m)]
        others = f"{len(supported)} could be, for example {', '.join(supported[:3])}" if supported else "it has none"
        frozen = ""
        if supported and self._all:
            frozen = (
                f" What is trained is {', '.join(list(self.trained)[:3])}{', ...' if len(self.trained) > 3 else ''}."
            )
            if self._linear and any(self._of_a_kind(parameter) for parameter in self.trained.values()):
                frozen += " target_modules='all' takes it."
        return UnsupportedModuleError(
            f"target_modules={self.target!r} with exclude_modules={self.exclude!r} selects no module of "
            f"{type(self.model).__name__}: {others}. Supported are {_supported()}.{frozen}"
        )

    def _of_a_kind(self, parameter: Tensor) -> bool:
        holders = self._holders.of(parameter)
        return any(kind_of(m, n) for _, m in holders for n, held in m._parameters.items() if held is parameter)


def _trained(model: nn.Module, known: Container[str]) -> dict[str, nn.Parameter]:
    """What training changes: what has `requires_grad`. Of a model that was loaded with everything frozen, what must
    have been trained: its adapters, or else all of it."""
    parameters = {name.removeprefix(PEFT_PREFIX): p for name, p in model.named_parameters()}
    trained = {name: p for name, p in parameters.items() if p.requires_grad or name in known}
    if trained:
        return trained
    adapters = {id(parameter) for parameter in adapter_parameters(model)}
    return {n: p for n, p in parameters.items() if p.is_floating_point() and (not adapters or id(p) in adapters)}


def _heads(model: nn.Module) -> set[int]:
    """ids of the modules that are output heads, or parts of them."""
    base = base_model(model)
    heads = [getattr(base, name, None) for name in _HEAD_NAMES]
    if hasattr(base, "get_output_embeddings"):
        heads.append(base.get_output_embeddings())
    return {id(module) for head in heads if isinstance(head, nn.Module) for module in head.modules()}


def _names_of(weight: Any, module: nn.Module) -> list[str]:
    """What a module calls a parameter."""
    return [name for name, held in module._parameters.items() if held is weight]


def _asked_for(owner: str, parameter: str, pattern: str | list[str]) -> bool:
    """Whether a pattern means a parameter: by its own name, or by its module's or adapted layer's, but for a bias."""
    if matches(tracked_name(owner, parameter), pattern):
        return True
    return parameter != "bias" and (matches(owner, pattern) or matches(adapted_layer(owner), pattern))


def _is_adapter(owner: str) -> bool:
    """Whether a module is a part of an adapter; a copy of a whole module (`modules_to_save`) is none."""
    return is_part(owner) and ".modules_to_save." not in owner


def _unsupported(name: str, module: nn.Module) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"Module '{name}' is a {type(module).__name__}, which cannot be tracked. Supported are {_supported()}; leave "
        "it out with target_modules or exclude_modules."
    )


def _supported() -> str:
    return f"modules of the kinds {', '.join(sorted(kind.name for kind in LAYER_KINDS))}, and PEFT's LoRA matrices"
