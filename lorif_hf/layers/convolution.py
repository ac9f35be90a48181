"""`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`: a linear layer of each window of the input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    name = "convolution"
    linear = False
    forward_of = _CONVOLUTIONS

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return parameter == "weight" and isinstance(module, _CONVOLUTIONS)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        weight: Tensor = getattr(module, parameter)
        return MatrixShape(math.prod(weight.shape[1:]), len(weight))

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).mT

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return Windows.of(module).tokens(first_argument(args, kwargs), batch)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution, called as one."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _CONVOLUTIONS)


@dataclass(frozen=True)
class Windows:
    """Which windows of an input a convolution sees.

    Args:
        kernel, stride, dilation (`Sequence[int]`): for each axis.
        pads (`Sequence[int]`): what is put before and after each axis, the last axis first, as `F.pad` takes it.
        mode (`str`): what is put there, as `F.pad` takes it.
        groups (`int`): of channels.
    """

    kernel: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    pads: Sequence[int]
    mode: str = "constant"
    groups: int = 1

    @classmethod
    def of(cls, module: Any) -> "Windows":
        """Those of a convolution."""
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pads = module._reversed_padding_repeated_twice
        return cls(module.kernel_size, module.stride, module.dilation, pads, mode, module.groups)

    @classmethod
    def called(
        cls, kernel: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> "Windows":
        """Those of a function that is called with a weight of this kernel, `F.conv1d` and the like."""
        stride, dilation = _each(stride, kernel), _each(dilation, kernel)
        if padding == "same":
            spans = [distance * (size - 1) for size, distance in zip(kernel, dilation, strict=True)]
            pads = [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
        else:
            sides = _each(0 if padding == "valid" else padding, kernel)
            pads = [side for side in reversed(sides) for _ in range(2)]
        return cls(kernel, stride, dilation, pads, groups=groups)

    def tokens(self, inputs: Tensor, batch: BatchShape) -> Tokens:
        """X and dY of a convolution of these inputs."""
        inputs = inputs.detach()
        windows = self._windows(inputs)

        def patches() -> Tensor | None:
            return batch.per_example(windows.flatten(len(self.kernel) + 1))

        def returned(gradient: Tensor) -> Tensor | None:
            return batch.per_example(self.positions_first(gradient))

        if self.groups == 1:
            return Tokens(patches(), returned)
        if windows.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr():
            windows = windows.clone()  # whoever called may change its input before the gradient comes
        size = inputs.shape[-len(self.kernel) - 1] // self.groups * math.prod(self.kernel)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        identity = torch.eye(size, dtype=wide, device=inputs.device).expand(batch.examples, -1, -1)

        def gradients(gradient: Tensor) -> Tensor | None:
            x, dy = patches(), returned(gradient)
            if x is None or dy is None:
                return None
            x, dy = (side.unflatten(2, (self.groups, -1)).to(wide) for side in (x, dy))
            return torch.einsum("btgi,btgo->bigo", x, dy).flatten(2)

        told_apart = batch.per_example(inputs.new_empty(len(windows), 1, 1)) is not None
        return Tokens(identity if told_apart else None, gradients)

    def positions_first(self, values: Tensor) -> Tensor:
        """(B, C, ...positions) as (B, ...positions, C); of a single input too, which has no B."""
        return self._batched(values).movedim(1, -1)

    def count(self, inputs: Tensor) -> list[int]:
        """How many windows of an input there are along each axis."""
        shape = self._batched(inputs).shape[2:]
        padded = [size + self.pads[-2 * i - 1] + self.pads[-2 * i - 2] for i, size in enumerate(shape)]
        return [(size - span) // step + 1 for size, span, step in zip(padded, self._spans, self.stride, strict=True)]

    def _windows(self, inputs: Tensor) -> Tensor:
        """(B, I, ...sizes) -> (B, ...positions, I, ...kernel), a view of the padded input."""
        values = self._batched(inputs)
        if any(self.pads):
            values = F.pad(values, list(self.pads), mode=self.mode)
        for i, span in enumerate(self._spans):
            values = values.unfold(i + 2, span, self.stride[i])[..., :: self.dilation[i]]
        return values.movedim(1, len(self.kernel) + 1)

    def _batched(self, values: Tensor) -> Tensor:
        return values if values.dim() == len(self.kernel) + 2 else values.unsqueeze(0)

    @property
    def _spans(self) -> list[int]:
        """How far a window reaches along each axis."""
        return [distance * (size - 1) + 1 for size, distance in zip(self.kernel, self.dilation, strict=True)]


def _each(value: Any, kernel: Sequence[int]) -> Sequence[int]:
    """A value for each axis of a kernel."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values
