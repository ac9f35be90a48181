"""Which modules of a model are tracked."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..registry import LAYER_KINDS
from .base import LayerKind, kind_of


_PEFT_PREFIX = "base_model.model."  # PeftModel's own wrapping; the same adapter injected by transformers lacks it
_HEAD_NAMES = ("score", "classifier", "classification_head", "qa_outputs")


@dataclass(frozen=True)
class TrackedModule:
    """A layer whose weight gradient G = X^T dY (I x O) is recorded.

    Args:
        name (`str`): qualified name in the unwrapped model.
        kind (`LayerKind`): what its inputs and output gradients are.
        in_features (`int`): I.
        out_features (`int`): O.
        module (`nn.Module`): the module itself.
    """

    name: str
    kind: LayerKind
    in_features: int
    out_features: int
    module: nn.Module

    @classmethod
    def of(cls, name: str, kind: LayerKind, module: nn.Module) -> "TrackedModule":
        """A module of a kind that accepts it."""
        return cls(name, kind, *kind.features(module), module)

    @property
    def weight(self) -> Tensor:
        """The parameter, as the module keeps it."""
        weight: Tensor = getattr(self.module, self.kind.weight)
        return weight


def unwrap(model: Any) -> Any:
    """The model inside `torch.compile`, `DataParallel` and `DistributedDataParallel` wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def base_model(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def tracked_modules(
    model: nn.Module, target_modules: str | list[str] = "all-linear", exclude_modules: str | list[str] | None = None
) -> list[TrackedModule]:
    """The layers of `model` that an index records, in the model's own order.

    A model that carries LoRA adapters is tracked on the A and B matrices of its active ones and nowhere else; the
    patterns then select the adapted layers.

    Args:
        model (`nn.Module`): the unwrapped model.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`): as in `InfluenceConfig`.
        exclude_modules (`str` or `list[str]`, *optional*): as in `InfluenceConfig`.

    Raises:
        [`~lorif_hf.errors.UnsupportedModuleError`]: nothing matches, or a match is of a kind that cannot be tracked.
    """
    lora_layers = _lora_layers(model)
    peft_configs: Any = getattr(model, "peft_config", None)
    if peft_configs and has_adapter(model) and not lora_layers:
        methods = sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in peft_configs.values()})
        raise UnsupportedModuleError(
            f"The PEFT model has no LoRA layer to track (its method is {', '.join(methods)}): only LoRA adapters are "
            "supported. Index the base model, or merge the adapter and index the merged model."
        )
    candidates = lora_layers or {name: module for name, module in model.named_modules() if name}
    excluded = _excluded(model, target_modules, exclude_modules)
    chosen = []
    for full_name, module in candidates.items():
        name = full_name.removeprefix(_PEFT_PREFIX)
        if id(module) in excluded or (exclude_modules is not None and matches(name, exclude_modules)):
            continue
        if lora_layers:
            if target_modules == "all-linear" or matches(name, target_modules):
                chosen += list(_adapter_matrices(name, module))
        elif target_modules == "all-linear":
            kind = kind_of(module)
            if kind is not None and kind.linear:
                chosen.append(TrackedModule.of(name, kind, module))
        elif matches(name, target_modules) and next(module.parameters(recurse=False), None) is not None:
            chosen.append(_tracked(name, module))
    if not chosen:
        supported = [name.removeprefix(_PEFT_PREFIX) for name, m in candidates.items() if lora_layers or kind_of(m)]
        others = f"{len(supported)} could be, for example {', '.join(supported[:3])}" if supported else "it has none"
        raise UnsupportedModuleError(
            f"target_modules={target_modules!r} with exclude_modules={exclude_modules!r} selects no module of "
            f"{type(model).__name__}: {others}. Supported are {_supported()}."
        )
    return chosen


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT has a part in the model. A merged one may keep the config of what it was merged with."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def modules_by_name(model: nn.Module, kinds: Mapping[str, str]) -> dict[str, TrackedModule]:
    """The layers that the model has and that their kinds accept, in the order asked for.

    Args:
        model (`nn.Module`): the unwrapped model.
        kinds (`Mapping[str, str]`): name of the module -> name of its kind.

    Raises:
        [`~lorif_hf.errors.UnknownKindError`]: a kind is not registered.
    """
    present = {name.removeprefix(_PEFT_PREFIX): module for name, module in model.named_modules()}
    wanted = {name: LAYER_KINDS.get(kind) for name, kind in kinds.items()}
    return {
        name: TrackedModule.of(name, kind, present[name])
        for name, kind in wanted.items()
        if name in present and kind.accepts(present[name])
    }


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """The shape of every parameter by name, tied ones under each of their names, as tracked modules are called."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name.removeprefix(_PEFT_PREFIX): list(parameter.shape) for name, parameter in parameters}


def matches(name: str, pattern: str | Sequence[str]) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name, a list holds names or name suffixes."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in pattern)


def _excluded(model: nn.Module, target_modules: str | list[str], exclude_modules: Any) -> set[int]:
    """ids of the output heads, where the user asked for "all-linear" and excluded nothing himself."""
    if target_modules != "all-linear" or exclude_modules is not None:
        return set()
    base = base_model(model)
    heads = [getattr(base, name, None) for name in _HEAD_NAMES]
    if hasattr(base, "get_output_embeddings"):
        heads.append(base.get_output_embeddings())
    return {id(module) for head in heads if isinstance(head, nn.Module) for module in head.modules()}


def _tracked(name: str, module: nn.Module) -> TrackedModule:
    kind = kind_of(module)
    if kind is None:
        raise UnsupportedModuleError(
            f"Module '{name}' is a {type(module).__name__}, which cannot be tracked. Supported are {_supported()}; "
            "leave it out with target_modules or exclude_modules."
        )
    return TrackedModule.of(name, kind, module)


def _supported() -> str:
    return f"modules of the kinds {', '.join(sorted(kind.name for kind in LAYER_KINDS))}, and PEFT's LoRA matrices"


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name; none where PEFT was never imported."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.lora.layer import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _adapter_matrices(name: str, layer: Any) -> Iterator[TrackedModule]:
    if layer.merged:
        raise UnsupportedModuleError(
            f"The LoRA adapter of '{name}' is merged into its base layer, so no gradient reaches its matrices. Call "
            "model.unmerge_adapter(), or model.merge_and_unload() to index the merged model as a whole."
        )
    if layer.disable_adapters:
        raise UnsupportedModuleError(f"The LoRA adapters of '{name}' are disabled: enable them to index them.")
    for adapter in layer.active_adapters:
        for side in ("lora_A", "lora_B"):
            matrices = getattr(layer, side)
            if adapter in matrices:
                yield _tracked(f"{name}.{side}.{adapter}", matrices[adapter])
