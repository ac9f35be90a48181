"""`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`: a linear layer of each window of the input."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import BatchShape, LayerKind, MatrixShape, Tokens, first_argument


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Convolution(LayerKind):
    """A convolution: a token is a position, its input the window there, (I / groups) x kernel long.

    So X of an input is about as many times larger than it as the kernel has elements, from the call until its gradient
    comes back. In several groups, every position would be as many tokens, of which each has a block of the output to
    itself: there the gradient itself is small, 1 / groups of what it would be, and formed at once. It is then given
    row by row: with an identity as X, whose products with the rows of G are G.

    Not taken are subclasses that compute otherwise, and transposed convolutions.
    """

    name = "convolution"
    linear = False

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return parameter == "weight" and is_convolution(module)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        weight: Tensor = getattr(module, parameter)
        return MatrixShape(math.prod(weight.shape[1:]), len(weight))

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).mT

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        inputs, axes = first_argument(args, kwargs).detach(), len(_of(module).kernel_size)
        windows = _windows(module, inputs)

        def patches() -> Tensor | None:
            return batch.per_example(windows.flatten(axes + 1))

        def returned(gradient: Tensor) -> Tensor | None:
            return batch.per_example(positions_first(module, gradient))

        groups: int = _of(module).groups
        if groups == 1:
            return Tokens(patches(), returned)
        if windows.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr():
            windows = windows.clone()  # whoever called may change its input before the gradient comes
        rows = len(windows) if batch.examples > 1 else 1
        size, wide = self.shape(module, parameter).in_features, torch.promote_types(inputs.dtype, torch.float32)
        identity = torch.eye(size, dtype=wide, device=inputs.device).expand(batch.examples, -1, -1)

        def gradients(gradient: Tensor) -> Tensor | None:
            x, dy = patches(), returned(gradient)
            if x is None or dy is None:
                return None
            x, dy = (side.unflatten(2, (groups, -1)).to(wide) for side in (x, dy))
            return torch.einsum("btgi,btgo->bigo", x, dy).flatten(2)

        return Tokens(identity if rows == batch.examples else None, gradients)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution and computes no other."""
    kind = next((kind for kind in _CONVOLUTIONS if isinstance(module, kind)), None)
    plain = kind is not None and type(module).forward is kind.forward
    return plain and type(module)._conv_forward is kind._conv_forward  # type: ignore[union-attr]


def positions_first(module: nn.Module, values: Tensor) -> Tensor:
    """(B, C, ...positions) of a convolution as (B, ...positions, C); of a single input too, which has no B."""
    return _batched(module, values).movedim(1, -1)


def positions(module: nn.Module, inputs: Tensor) -> list[int]:
    """How many windows of an input there are along each axis."""
    pads, each = _pads(module), _each_axis(module)
    shape = _batched(module, inputs).shape[2:]
    padded = [size + pads[-2 * axis - 1] + pads[-2 * axis - 2] for axis, size in enumerate(shape)]
    return [(size - span) // stride + 1 for size, (span, stride, _) in zip(padded, each, strict=True)]


def _windows(module: nn.Module, inputs: Tensor) -> Tensor:
    """(B, I, ...sizes) -> (B, ...positions, I, ...kernel), a view of the padded input."""
    mode, pads = _of(module).padding_mode, _pads(module)
    values = _batched(module, inputs)
    if any(pads):
        values = F.pad(values, pads, mode="constant" if mode == "zeros" else mode)
    for axis, (span, stride, dilation) in enumerate(_each_axis(module), start=2):
        values = values.unfold(axis, span, stride)[..., ::dilation]
    return values.movedim(1, len(_of(module).kernel_size) + 1)


def _batched(module: nn.Module, values: Tensor) -> Tensor:
    return values if values.dim() == len(_of(module).kernel_size) + 2 else values.unsqueeze(0)


def _each_axis(module: nn.Module) -> list[tuple[int, int, int]]:
    """For each axis how far a window reaches, how far the next one is, and how far its elements are apart."""
    each = zip(_of(module).kernel_size, _of(module).stride, _of(module).dilation, strict=True)
    return [(dilation * (size - 1) + 1, stride, dilation) for size, stride, dilation in each]


def _pads(module: nn.Module) -> list[int]:
    """What is put before and after each axis, the last axis first, as `F.pad` takes it."""
    return list(_of(module)._reversed_padding_repeated_twice)


def _of(module: nn.Module) -> Any:
    """A convolution, whose attributes are not those of every module."""
    return module
