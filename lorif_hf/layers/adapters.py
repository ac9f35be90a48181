"""What PEFT puts into a model: which of it is trained, which takes part, and what cannot be recorded."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from ..errors import UnsupportedModuleError
from .base import is_plain, kind_of
from .experts import Experts, TransposedExperts
from .linear import Linear
from .modules import PEFT_PREFIX, has_adapter


ON_PARAMETER = (
    "its LoRA adapter is on a bare parameter (target_parameters), whose matrices are multiplied with each other and "
    "not with tokens, so their gradients cannot be told apart by example; adapt modules (target_modules) instead"
)

_PARTS = (".lora_", ".modules_to_save.", ".token_adapter.", ".trainable_tokens_")  # of a name, where an adapter begins


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name, out of PEFT's wrapping; none where PEFT was never imported."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.lora.layer import LoraLayer

    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return {name.removeprefix(PEFT_PREFIX): module for name, module in layers}


def lora_matrices(layer: Any) -> Iterator[tuple[str, str, nn.Module]]:
    """The matrices A and B of the active adapters of a LoRA layer: adapter, `"lora_A"` or `"lora_B"`, and module."""
    for adapter in layer.active_adapters:
        for side in ("lora_A", "lora_B"):
            matrices = getattr(layer, side)
            if adapter in matrices:
                yield adapter, side, matrices[adapter]


def adapted_layer(name: str) -> str:
    """The layer that a part of an adapter belongs to, by the part's name; of another parameter or module, itself."""
    places = [name.find(part) for part in _PARTS]
    return name[: min(place for place in places if place > 0)] if any(place > 0 for place in places) else name


def is_part(name: str) -> bool:
    """Whether something of this name is a part of an adapter."""
    return adapted_layer(name) != name


def adapter_parameters(model: nn.Module, active: bool = True) -> Iterator[nn.Parameter]:
    """What PEFT trains of a model: the parameters of its active adapters, or of all of them, and of the copies that
    `modules_to_save` and `trainable_token_indices` make."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for layer in model.modules():
        if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            for path in layer.adapter_layer_names:
                part: Any = layer
                for name in path.split("."):
                    part = getattr(part, name, None)
                if isinstance(part, (nn.ModuleDict, nn.ParameterDict)):
                    for adapter in part:
                        if not active or adapter in layer.active_adapters:
                            yield from _parameters(part[adapter])


def inactive_adapters(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Adapters that take no part in a model's forward pass, though their matrices are asked for.

    Args:
        model (`nn.Module`): the unwrapped model.
        names (`Iterable[str]`): of modules, LoRA matrices among them.

    Returns:
        `dict[str, list[str]]`: such an adapter -> those that are active where it should be.
    """
    layers = lora_layers(model)
    inactive = {}
    for name in names:
        owner, _, rest = name.rpartition(".lora_")
        adapter = rest.partition(".")[2]
        if owner in layers:
            active = [] if layers[owner].disable_adapters else list(layers[owner].active_adapters)
            if adapter not in active:
                inactive[adapter] = active
    return inactive


def refuse_other_adapters(model: nn.Module, layers: dict[str, Any]) -> None:
    """Raises [`~lorif_hf.errors.UnsupportedModuleError`] where PEFT trains something else than LoRA.

    Args:
        model (`nn.Module`): the unwrapped model.
        layers (`dict`): its LoRA layers.
    """
    configs: Any = getattr(model, "peft_config", None)
    if not configs or not has_adapter(model) or layers:
        return
    methods = sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in configs.values()})
    if methods == ["TRAINABLE_TOKENS"]:
        return
    raise UnsupportedModuleError(
        f"The PEFT model has no LoRA layer to track (its method is {', '.join(methods)}): only LoRA adapters are "
        "supported. Train a LoRA adapter instead. (Of a merged model every layer would be tracked, and none of them "
        "was trained.)"
    )


def check_adapter(name: str, layer: Any) -> None:
    """Raises [`~lorif_hf.errors.UnsupportedModuleError`] where no gradient reaches the matrices of a LoRA layer, or
    they are none that are multiplied with tokens."""
    if layer.merged:
        raise UnsupportedModuleError(
            f"The LoRA adapter of '{name}' is merged into its base layer, so no gradient reaches its matrices. Call "
            "model.unmerge_adapter(), or model.merge_and_unload() to index the merged model as a whole."
        )
    if layer.disable_adapters:
        raise UnsupportedModuleError(f"The LoRA adapters of '{name}' are disabled: enable them to index them.")
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A and not isinstance(layer.lora_A[adapter], nn.Module):
            raise UnsupportedModuleError(
                f"The adapter '{adapter}' of '{name}' is a {type(layer).__name__}, which keeps its matrices as bare "
                "parameters (AdaLoRA). Train a LoRA adapter instead."
            )


def adapts_experts(layer: Any) -> bool:
    """Whether a LoRA layer adapts stacked experts that ask transformers' registry what to compute: their products are
    seen."""
    if type(layer).__name__ != "ParamWrapper":
        return False
    kind = kind_of(layer.get_base_layer(), layer.parameter_name)
    return isinstance(kind, (Experts, TransposedExperts)) and layer.num_experts > 1


def adapts_weight(layer: Any) -> bool:
    """Whether a LoRA layer adapts the weight of a plain `nn.Linear` as a bare parameter: its calls are seen."""
    if type(layer).__name__ != "ParamWrapper" or layer.parameter_name != "weight":
        return False
    below = layer.get_base_layer()
    kind = kind_of(below)
    return isinstance(kind, Linear) and is_plain(kind, below)


def is_on_parameter(layer: Any) -> bool:
    """Whether a LoRA layer adapts a bare parameter (`target_parameters`) of which no product is seen."""
    return type(layer).__name__ == "ParamWrapper" and not adapts_experts(layer) and not adapts_weight(layer)


def _parameters(part: nn.Module | nn.Parameter) -> Iterator[nn.Parameter]:
    """The parameters of a part of an adapter, which is a module or a parameter itself."""
    if isinstance(part, nn.Module):
        yield from part.parameters()
    else:
        yield part
