"""A device that is none: tensors on it hold their numbers on the CPU, and tell what a real one would do with them.

Tensors of "lazy:0" and "lazy:1" are on two devices beside the CPU. (torch knows the name, brings no such device along,
and runs its backward on the caller's thread, so that nothing has to be registered in the process.) An operation on
tensors of different devices fails, as on a GPU; what crosses between device and CPU is counted, and so is what makes
the CPU wait for the device.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


KIND = "lazy"
DEVICE, SECOND_DEVICE = torch.device(KIND, 0), torch.device(KIND, 1)

_PACKAGES = ("lorif_hf", "callbacks")
_HERE = Path(__file__).resolve()

# What cannot be done without knowing the numbers: the shape of the result depends on them, or an error does.
_WAITING = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "linalg_eig",
    "linalg_eigh",
    "_linalg_eigh",
    "linalg_lstsq",
    "_linalg_svd",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}
# Made of several operations, none of which waits or crosses: taken as they are, which is faster.
_WHOLE = {
    "contiguous",
    "expand_as",
    "flatten",
    "isfinite",
    "matmul",
    "norm",
    "reshape",
    "square",
    "type_as",
    "unflatten",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


@dataclass(frozen=True)
class Crossing:
    """Something that a program on a device waits for.

    Args:
        kind (`str`): "to device", "to host", "between devices", or "wait": the CPU waits for what it asks about the
            numbers. What goes to the host is waited for, too.
        operation (`str`): torch's name of it.
        bytes (`int`): that crossed.
        where (`str`): the innermost line of this library, "recording/recorder.py:120 _record".
    """

    kind: str
    operation: str
    bytes: int
    where: str


class FakeDeviceTensor(Tensor):
    """A tensor on a fake device. `on_host` holds its numbers, and is laid out as it is."""

    on_host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_host: Tensor, device: torch.device | None = None, requires_grad: bool = False):
        if device is None:  # accelerate makes parameters anew by the class of those before them
            return nn.Parameter(on_host, requires_grad)
        self = Tensor._make_wrapper_subclass(
            cls,
            on_host.size(),
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
            device=device,
        )
        self.on_host = on_host
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})

    def data_ptr(self):
        return self.on_host.data_ptr()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        Tensor.data.__set__(self, value)
        self.on_host = value.on_host

    def tolist(self):
        return self.cpu().tolist()

    def dequantize(self):
        """The plain tensor that it stands for: what an index hashes of a weight."""
        return self.detach().cpu()

    def __repr__(self, *, tensor_contents=None):
        return f"FakeDeviceTensor({self.on_host!r}, device='{self.device}')"


class _Dispatching(TorchDispatchMode):
    """Sees what makes tensors, once more inside of a dispatch."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})


class FakeDevice(_Dispatching):
    """Context manager in which the devices [`DEVICE`] and [`SECOND_DEVICE`] are there.

    Args:
        float64 (`bool`, *optional*, defaults to `True`): whether they know float64; Apple's GPUs (MPS) do not.

    Attributes:
        crossings (`Crossings`): all that crossed, or was waited for, since it was last told to forget.

    Example:

    ```python
    with FakeDevice() as fake:
        model = on_device(make_gpt2())
        fake.forget()
        ...  # what is looked at
        assert fake.crossings.counts == {"to host": 1}, str(fake.crossings)
    ```
    """

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64 = float64
        self.crossings = Crossings()

    def __enter__(self):
        _active.append(self)
        self._autocast = torch.is_autocast_enabled
        torch.is_autocast_enabled = _is_autocast_enabled(self._autocast)  # C++ knows no autocast of such a device
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=): made on the CPU, and brought over here
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        torch.is_autocast_enabled = self._autocast
        _active.remove(self)
        return super().__exit__(*error)

    def forget(self) -> None:
        """Count from zero again."""
        self.crossings = Crossings()


class Crossings(list):
    """Crossings, and what they come to."""

    def of(self, *kinds: str) -> "Crossings":
        return Crossings(crossing for crossing in self if crossing.kind in kinds)

    def where(self, *files: str) -> "Crossings":
        """Those of some files of the library, "recording/recorder.py"."""
        return Crossings(crossing for crossing in self if crossing.where.partition(":")[0] in files)

    @property
    def bytes(self) -> int:
        return sum(crossing.bytes for crossing in self)

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return dict(sorted(Counter(crossing.kind for crossing in self).items()))

    def __str__(self) -> str:
        """A table, the most frequent first: what a failing test shows."""
        times = Counter((c.kind, c.operation, c.where) for c in self)
        sizes = Counter()
        for c in self:
            sizes[c.kind, c.operation, c.where] += c.bytes
        return "\n".join(f"{n:5} x {' | '.join(key)} | {sizes[key]} bytes" for key, n in times.most_common())


_active: list[FakeDevice] = []


def on_device(thing, device: torch.device = DEVICE):
    """A model, or tensors in a dict, list or tuple, on a fake device; nothing of it is counted. A model is changed in
    place, and tied weights stay tied."""
    if not isinstance(thing, nn.Module):
        return tree_map(lambda value: _placed(value, device) if isinstance(value, Tensor) else value, thing)
    placed: dict[int, Tensor] = {}
    for module in thing.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in placed:
                    moved = _placed(tensor.detach(), device)
                    if isinstance(tensor, nn.Parameter):
                        moved = nn.Parameter(moved, tensor.requires_grad)
                    placed[id(tensor)] = moved
                held[name] = placed[id(tensor)]
        for name, value in vars(module).items():  # what transformers keeps of rotary frequencies beside the buffers
            if type(value) is Tensor:
                setattr(module, name, _placed(value, device))
    return thing


def on_host(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, wherever it is; not counted."""
    return tensor.detach().on_host if isinstance(tensor, FakeDeviceTensor) else tensor


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    return FakeDeviceTensor(on_host(tensor).clone(), device)


def _dispatch(function, args, kwargs):
    """Run an operation on the numbers, and see what a device would make of it."""
    leaves: list = []
    _mapped(leaves.append, args)
    _mapped(leaves.append, tuple(kwargs.values()))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    placed = [tensor for tensor in tensors if isinstance(tensor, FakeDeviceTensor)]
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    if not placed and (asked is None or asked.type != KIND):
        return function(*args, **kwargs)
    name = function.overloadpacket.__name__
    if torch.is_inference_mode_enabled() and name not in _WHOLE:
        with _Dispatching():  # without autograd, also what is made of several operations comes here whole
            whole = function.decompose(*args, **kwargs)
        if whole is not NotImplemented:
            return whole
    if asked is not None and asked.type == KIND:
        asked = torch.device(KIND, asked.index or 0)
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{KIND}' device type for generator but found 'cpu'")
    if name == "copy_":
        device = args[0].device
        _crossed(name, args[1], device)
    elif name == "_to_copy":
        device = args[0].device if asked is None else asked
        _crossed(name, args[0], device)
        _check_dtype(kwargs.get("dtype"))
    else:
        device = _common_device(name, args, tensors, placed) if placed else asked
        if asked is not None:  # zeros_like(x, device=...)
            device = asked
        _see_waiting(name, args)
    shapes = [leaf.on_host.shape for leaf in placed]
    wrappers = {id(leaf.on_host): leaf for leaf in placed}
    inner_args, inner_kwargs = _mapped(_inner, args), {key: _mapped(_inner, value) for key, value in kwargs.items()}
    if "device" in inner_kwargs and device.type == KIND:
        inner_kwargs["device"] = torch.device("cpu")
    if inner_kwargs.pop("pin_memory", None):
        raise RuntimeError("pinned memory is the CPU's")
    copied = inner_args[0].clone() if name == "_to_copy" and _stays(inner_args[0], inner_kwargs) else None
    result = function(*inner_args, **inner_kwargs) if copied is None else copied
    for leaf, shape in zip(placed, shapes, strict=True):
        if leaf.on_host.shape != shape:
            raise NotImplementedError(f"{name} changes the shape of a tensor in place: {shape}")

    def wrap(value):
        if not isinstance(value, Tensor) or id(value) in wrappers or device.type != KIND:
            return wrappers.get(id(value), value)
        _check_dtype(value.dtype)
        return FakeDeviceTensor(value, device)

    return _mapped(wrap, result)


def _mapped(change, value):
    """Arguments of an operation, or what comes of it, with each value changed."""
    if isinstance(value, (list, tuple)):
        mapped = [_mapped(change, part) for part in value]
        return mapped if isinstance(value, list) else tuple(mapped)
    return change(value)


def _inner(value):
    return value.on_host if isinstance(value, FakeDeviceTensor) else value


def _stays(tensor: Tensor, kwargs) -> bool:
    """Whether `_to_copy` has nothing to do on the CPU, where it must make a copy all the same."""
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    if device is not None and device.type != "cpu":  # the meta device
        return False
    return dtype in (None, tensor.dtype) and kwargs.get("memory_format") in (None, torch.preserve_format)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is torch.float64 and _active and not _active[-1].float64:
        raise TypeError("Cannot convert a tensor of this device to float64, which it does not have. Use float32.")


def _common_device(name, args, tensors, placed) -> torch.device:
    """The one device of an operation.

    Raises:
        `RuntimeError`: there are several.
    """
    indices: list[Tensor] = []
    if name in _INDEXING and isinstance(args[0], FakeDeviceTensor):
        indices = [index for index in args[1] if isinstance(index, Tensor) and not isinstance(index, FakeDeviceTensor)]
        for index in indices:  # allowed, and brought over
            _crossed(name, index, args[0].device)
    beside = [
        tensor
        for tensor in tensors
        if not isinstance(tensor, FakeDeviceTensor) and tensor.dim() and all(tensor is not index for index in indices)
    ]
    devices = {tensor.device for tensor in placed}
    if len(devices) > 1 or beside:
        found = ", ".join(f"{tensor.device} {tuple(tensor.shape)}" for tensor in tensors)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found several ({name}: {found}) at {_where()}"
        )
    return next(iter(devices))


def _see_waiting(name: str, args) -> None:
    masks = name in _INDEXING and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    if name == "repeat_interleave" and len(args) > 1 and args[1] is not None:
        return
    if name in _WAITING or masks:
        _note("wait", name, 0)


def _crossed(name: str, source: Tensor, target: torch.device) -> None:
    if source.device == target or target.type == "meta":
        return
    if KIND == source.device.type == target.type:
        kind = "between devices"
    else:
        kind = "to device" if target.type == KIND else "to host"
    _note(kind, name, source.numel() * source.element_size())


def _note(kind: str, operation: str, size: int) -> None:
    if _active:
        _active[-1].crossings.append(Crossing(kind, operation, size, _where()))


def _where() -> str:
    """The innermost line of the library, or else of what called."""
    frame, outside = sys._getframe(1), None
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        for package in _PACKAGES if frame.f_code.co_name != "__torch_function__" else ():
            if package in parts and "tests" not in parts and "site-packages" not in parts:
                path = "/".join(parts[len(parts) - parts[::-1].index(package) :])
                return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
        if outside is None and "torch" not in parts and frame.f_code.co_filename != __file__:
            outside = f"{parts[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return outside or "?"


def _is_autocast_enabled(known):
    def is_autocast_enabled(device_type=None):
        if device_type == KIND:
            return False
        return known() if device_type is None else known(device_type)

    return is_autocast_enabled
