"""Which model was recorded: enough to notice that a query comes with another one."""

import hashlib
import json
import math
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..layers.adapters import lora_layers
from ..layers.modules import TrackedModule, base_model, has_adapter, owner_of
from ..tasks.base import auto_class
from .stored_weights import Weight, stored_parts, weights_of


@dataclass(frozen=True)
class ModelIdentity:
    """Args:
    name (`str` or `None`): Hub id or folder the model was loaded from, where known; a local path keeps its last part.
    commit (`str` or `None`): Hub commit, where known.
    model_class (`str`): the model's class.
    auto_class (`str` or `None`): transformers' Auto class that loads it.
    weights_sha256 (`str`): hash over the names, dtypes and bytes of the tracked weights.
    other_weights (`str`): hash over the bit sums of all other parameters and saved buffers, which shape the
        gradients too.
    adapter (`dict` or `None`): the PEFT adapters' configs and scalings by name, where there are any, and whether
        each takes part.
    dtype (`str` or `None`): of most of the weights that are no adapter's, for whoever loads the model.
    quantization (`dict` or `None`): the settings that it was quantised by, where it was when it was loaded.
    """

    name: str | None
    commit: str | None
    model_class: str
    auto_class: str | None
    weights_sha256: str
    other_weights: str
    adapter: dict[str, Any] | None
    dtype: str | None = None
    quantization: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def identify(model: nn.Module, modules: Sequence[TrackedModule]) -> ModelIdentity:
    """The identity of an unwrapped model and its tracked layers."""
    base = base_model(model)
    config = getattr(base, "config", None)
    name = getattr(config, "_name_or_path", None) or None
    if name and (name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name):
        name = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]  # no path of this machine leaves it
    return ModelIdentity(
        name=name,
        commit=getattr(config, "_commit_hash", None),
        model_class=type(base).__name__,
        auto_class=auto_class(model),
        weights_sha256=weights_sha256(modules),
        other_weights=_other_weights(model, modules),
        adapter=_adapter_configs(model),
        dtype=str(base.dtype)[6:] if isinstance(getattr(base, "dtype", None), torch.dtype) else None,
        quantization=_quantization(config),
    )


def weights_sha256(modules: Sequence[TrackedModule]) -> str:
    """SHA-256 over the tracked weights, computed once for as long as they do not change.

    That they did not is seen by sums of their bits, which are much faster than the hash and, on a GPU, need no copy;
    PyTorch's own version counter misses what is written through `.data`.
    """
    return hashlib.sha256(
        json.dumps([(tracked.name, _parameter_sha256(tracked)) for tracked in modules]).encode()
    ).hexdigest()


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bit_sums(tensor: torch.Tensor) -> tuple[int, int]:
    """Sums of a tensor's bits read as integers, modulo 2^64, weighted by row and by column.

    Any change of one number shows: the weights are odd, so no difference times its weight is 0. As many numbers as
    fill eight bytes are read as one integer: shorter ones are widened before they are added, which takes ten times as
    long.
    """
    if not tensor.numel():
        return 0, 0
    rows = tensor.detach().contiguous().reshape(len(tensor) if tensor.dim() else 1, -1)
    width = math.gcd(8, rows.shape[1] * rows.element_size())
    if rows.storage_offset() * rows.element_size() % width:
        rows = rows.clone()  # no integer of that width starts there
    bits = rows.view(_INTEGERS[width])
    sums = bits.sum(dim=1, dtype=torch.int64), bits.sum(dim=0, dtype=torch.int64)
    by_row, by_column = (int((side * torch.arange(1, 2 * len(side), 2, device=side.device)).sum()) for side in sums)
    return by_row, by_column


def _other_weights(model: nn.Module, modules: Sequence[TrackedModule]) -> str:
    tracked = {id(module.weight) for module in modules}
    # Without names: the same model has others inside a PeftModel than with an adapter that transformers injected.
    sums = sorted(
        (label, list(part.shape), _bit_sums(part))
        for weight in weights_of(model)
        if id(weight.tensor) not in tracked
        for label, part in stored_parts(weight)
        if part.numel()
    )
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


_known: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Any, str]]]" = weakref.WeakKeyDictionary()


def _parameter_sha256(tracked: TrackedModule) -> str:
    name = tracked.parameter
    path = f"{owner_of(tracked.name, name)}.{name}"
    parts = stored_parts(Weight(path, tracked.module, name, tracked.weight))
    state = [(label, tuple(part.shape), *_bit_sums(part)) for label, part in parts]
    hashes = _known.setdefault(tracked.module, {})
    cached = hashes.get(name)
    if cached and cached[0] == state:
        return cached[1]
    digest = hashlib.sha256()
    for label, part in parts:
        data: Any = part.to("cpu").contiguous().flatten()
        digest.update(f"{label}{tuple(part.shape)}".encode())
        if data.numel():
            digest.update(memoryview(data.view(torch.uint8).numpy()))
    hashes[name] = (state, digest.hexdigest())
    return digest.hexdigest()


def _adapter_configs(model: nn.Module) -> dict[str, Any] | None:
    configs = getattr(model, "peft_config", None)
    if not configs or not has_adapter(model):
        return None
    kept = ("peft_type", "r", "lora_alpha", "use_dora", "use_rslora", "bias", "fan_in_fan_out")
    kept_values: dict[str, Any] = {
        name: {key: _json_value(getattr(config, key)) for key in kept if hasattr(config, key)}
        for name, config in sorted(configs.items())
    }
    scalings: list[Any] = [getattr(module, "scaling", None) for module in model.modules()]
    active = {
        name for layer in lora_layers(model).values() if not layer.disable_adapters for name in layer.active_adapters
    }
    for name, values in kept_values.items():
        values["active"] = name in active
        values["scaling"] = sorted({float(s[name]) for s in scalings if isinstance(s, dict) and name in s})
    return kept_values


def _quantization(config: Any) -> dict[str, Any] | None:
    """The settings of a quantiser as plain values; those that are none are left out."""
    settings: Any = getattr(config, "quantization_config", None)
    if hasattr(settings, "to_dict"):
        settings = settings.to_dict()
    if not isinstance(settings, dict):
        return None
    plain = {key: getattr(value, "value", value) for key, value in settings.items()}
    return {key: value for key, value in plain.items() if isinstance(value, (str, int, float, bool))}


def _json_value(value: Any) -> Any:
    value = getattr(value, "value", value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
