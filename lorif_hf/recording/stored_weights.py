"""The plain tensors in which a parameter's numbers lie: on the disk, quantized, sparse, or in a subclass of Tensor.

They are the same whenever the same model is loaded, before its first forward and after it.
"""

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import UnsupportedModuleError
from ..layers.modules import base_model
from ..layers.offloading import offloaded
from .fingerprint import by_value


Parts = list[tuple[str, Tensor]]
"""Plain tensors, each with what tells what it is; of a plain parameter, its dtype alone."""

_SPARSE = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


@dataclass(frozen=True)
class Weight:
    """A parameter, or a buffer that is saved with the model.

    Args:
        path (`str`): its qualified name in the model, for errors.
        module (`nn.Module`): whose it is.
        name (`str`): what it is called there.
        tensor (`Tensor`): itself.
    """

    path: str
    module: nn.Module
    name: str
    tensor: Tensor


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """Every parameter of a model, and every buffer that is saved with it but counters, once."""
    seen: set[int] = set()
    same = _tied(model)
    for path, module in model.named_modules():
        passing = getattr(module, "_non_persistent_buffers_set", ())
        buffers = [(name, b) for name, b in module._buffers.items() if name not in passing and b is not None]
        counters = {name for name, buffer in buffers if not buffer.dim() and not buffer.is_floating_point()}
        for name, tensor in [*module._parameters.items(), *buffers]:
            if tensor is None or name in counters:
                continue
            identity = same.get(id(tensor), id(tensor))
            if identity not in seen:
                seen.add(identity)
                yield Weight(f"{path}.{name}" if path else name, module, name, tensor)


def _tied(model: nn.Module) -> dict[int, int]:
    """Of tied weights that are offloaded, the id of the parameter that each is tied to: they are several then."""
    pairs = [pair for pair in _tied_pairs(model) if all(weight.is_meta for _, weight in pair)]
    return {id(weight): id(other) for (_, weight), (_, other) in pairs}


def tied_apart(model: nn.Module) -> dict[int, str]:
    """By the id of a parameter, the name of another that is the same weight, and which accelerate keeps apart from it:
    both are offloaded, or they are on different devices."""
    apart: dict[int, str] = {}
    for (name, weight), (other_name, other) in _tied_pairs(model):
        if weight is not other and (weight.is_meta or weight.device != other.device):
            apart |= {id(weight): other_name, id(other): name}
    return apart


def _tied_pairs(model: nn.Module) -> list[tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
    """The parameters that transformers ties to others, with their names."""
    base = base_model(model)
    pairs = getattr(base, "all_tied_weights_keys", None)
    weights = dict(base.named_parameters(remove_duplicate=False)) if isinstance(pairs, Mapping) else {}
    known = [pair for pair in (pairs or {}).items() if set(pair) <= weights.keys()]
    return [((name, weights[name]), (other, weights[other])) for name, other in known]


def stored_parts(weight: Weight) -> Parts:
    """The plain tensors of a weight.

    Raises:
        [`~lorif_hf.errors.UnsupportedModuleError`]: it has no numbers here, or none that can be read.
    """
    tensor, library = weight.tensor, _bitsandbytes(weight.module)
    if nn.parameter.is_lazy(tensor):
        raise _unreadable(weight, "it is made at the first forward pass: run a batch through the model before")
    if hasattr(tensor, "ds_shape") and not tensor.numel():
        raise _unreadable(weight, "DeepSpeed ZeRO-3 keeps it in pieces: index the model outside DeepSpeed")
    if tensor.device.type == "meta":
        tensor = _offloaded(weight)
    if library is None and type(tensor) in (nn.Parameter, Tensor) and tensor.layout is torch.strided:
        if not tensor.is_quantized:
            return [(str(tensor.dtype), _plain(tensor))]
    try:
        with torch.no_grad():
            return (library and _of_bitsandbytes(library, weight)) or _parts(tensor)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise _unreadable(
            weight, f"its numbers cannot be read ({reason}). Dequantize the model, or load it in a usual dtype"
        ) from error


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().resolve_conj().resolve_neg()


def _parts(weight: Tensor, label: str = "") -> Parts:
    """A tensor of any kind as plain ones."""
    weight = weight.detach()
    if hasattr(weight, "full_tensor"):
        return _parts(weight.full_tensor(), label)  # of all processes that share it
    if is_traceable_wrapper_subclass(weight):
        names, context = weight.__tensor_flatten__()
        kind = type(weight)
        label = f"{label}{kind.__module__}.{kind.__qualname__} {tuple(weight.shape)} {by_value(context).decode()} "
        return [part for name in names for part in _parts(getattr(weight, name), f"{label}{name} ")]
    if type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # it stands for what lies elsewhere
        dense = weight.dequantize()
        if type(dense) is type(weight):
            raise TypeError(f"a {type(weight).__name__} says neither what it holds nor what it stands for")
        return _parts(dense, f"{label}{type(weight).__qualname__} ")
    weight = weight if type(weight) is Tensor else weight.as_subclass(Tensor)
    label = f"{label}{weight.dtype}"
    if weight.is_quantized:
        return [(f"{label} {_scheme(weight)}", weight.int_repr())]
    if weight.layout is torch.sparse_coo:
        weight = weight.coalesce()
        label = f"{label} sparse {tuple(weight.shape)} "
        return [(f"{label}indices", weight.indices()), (f"{label}values", _plain(weight.values()))]
    if weight.layout in _SPARSE:
        label = f"{label} {weight.layout} {tuple(weight.shape)} "
        return [(f"{label}{name}", _plain(getattr(weight, name)())) for name in _SPARSE[weight.layout]]
    if weight.layout is not torch.strided:
        weight = weight.to_dense()
    return [(label, _plain(weight))]


def _scheme(weight: Tensor) -> str:
    """How the integers of a quantized tensor of PyTorch are read."""
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{weight.q_scale()} {weight.q_zero_point()}"
    scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    return f"{weight.q_per_channel_axis()} {by_value([scales, zeros]).decode()}"


def execution_device(model: nn.Module) -> torch.device:
    """Where a model computes, and so where its inputs go: also of one whose weights are brought there at each call.

    A model on several devices brings its inputs on from there, and its outputs back ([`accelerate.dispatch_model`]).
    """
    whole = _execution_devices([model, base_model(model)])
    for weight in () if whole else model.parameters():
        if weight.device.type != "meta":
            return weight.device
    return next(iter(whole or _execution_devices(model.modules())), torch.device("cpu"))


def _execution_devices(modules: Iterable[nn.Module]) -> list[torch.device]:
    """Where accelerate's hooks on these modules bring what they are called with."""
    devices = []
    for module in modules:
        hook = getattr(module, "_hf_hook", None)
        for part in (hook, *getattr(hook, "hooks", ())):  # of a SequentialHook
            device = getattr(part, "execution_device", None)
            if device is not None:
                devices.append(torch.device(device))
    return devices


def _offloaded(weight: Weight) -> Tensor:
    tensor = offloaded(weight.module, weight.name)
    if tensor is not None:
        return tensor
    raise _unreadable(
        weight,
        "it is on the meta device, without numbers. Load the model with its weights (from_pretrained), or fill them "
        "in (to_empty and load_state_dict)",
    )


def _bitsandbytes(module: nn.Module) -> Any:
    """The bitsandbytes library, where it made the module."""
    made_by = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    return sys.modules.get("bitsandbytes") if "bitsandbytes" in made_by else None


def _of_bitsandbytes(library: Any, weight: Weight) -> Parts:
    """The weights of a layer of bitsandbytes, whatever its first forward did to them.

    On CPUs with AVX512-BF16, 4-bit layers then reorder the codes and round the scales to bfloat16, and their bias is
    cast to the dtype that they compute in; 8-bit layers move the scales from the weight into their state.
    """
    module, tensor = weight.module, weight.tensor
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        codes, scales = tensor.data, state.absmax
        if getattr(state, "packing_format_for_cpu", False):
            scales = scales.T.reshape(-1)
            codes, _ = library.functional._convert_weight_packed_for_cpu_inverse(codes, copy.copy(state))
        elif state.nested:
            scales = library.functional.dequantize_blockwise(scales, state.state2) + state.offset
        label = f"{state.quant_type} {state.blocksize} {tuple(state.shape)} "
        return [
            (f"{label}codes", codes.as_subclass(Tensor).detach()),
            (f"{label}scales", scales.reshape(-1).bfloat16().detach()),
        ]
    scales = getattr(tensor, "SCB", None)
    scales = getattr(getattr(module, "state", None), "SCB", None) if scales is None else scales
    if weight.name == "weight" and tensor.dtype == torch.int8 and scales is not None:
        return [("int8", tensor.data.as_subclass(Tensor).detach()), ("int8 scales", scales.detach().float())]
    if weight.name == "bias" and hasattr(module, "compute_dtype"):
        computed: Any = module.compute_dtype or tensor.dtype
        return [("bias", tensor.detach().to(computed).bfloat16())]
    return []


def _unreadable(weight: Weight, reason: str) -> UnsupportedModuleError:
    kind, dtype = type(weight.tensor).__name__, str(weight.tensor.dtype)[6:]
    return UnsupportedModuleError(
        f"'{weight.path}' ({kind} of {dtype}) cannot be identified: {reason}. An index must know by which weights it "
        "was recorded."
    )
