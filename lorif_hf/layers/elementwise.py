"""Parameters that scale or shift each feature by itself: of norms, layer scales, DoRA's magnitudes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .base import BatchShape, LayerKind, MatrixShape, Tokens
from .probing import output_with, tensors_in


class Elementwise(LayerKind):
    """A vector w of a module whose output is affine in it, feature by feature: y = h w + (what does not depend on w).

    A norm's h is the normalised input, that of a bias is 1; with w as the output's every feature has it, G is the sum
    of h dY over the tokens. What h is, the module says itself: h = y(w = 1) - y(w = 0), two more calls of its forward.
    So it does not matter how a norm is written (Gemma's scale by 1 + w, gates, statistics kept from the training), nor
    on which axis its features are. A number alone (w of one element) belongs to all features.

    Taken for such are the vectors of modules that hold nothing else and have no parts, and of whatever calls itself a
    norm. Where a module does something else with its vector, the check of the first batch finds it.
    """

    name = "elementwise"
    linear = False

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        if isinstance(module, (nn.ParameterList, nn.ParameterDict)):  # are never called
            return False
        whole = next(module.children(), None) is None or "norm" in type(module).__name__.lower()
        return whole and all(_is_vector(held) for held in module._parameters.values() if held is not None)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(1, getattr(module, parameter).numel())

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        probe = _Probe(module, parameter, args, kwargs)
        zero = probe.output(0)
        slope = probe.output(1) - zero  # h, as wide as the output
        axis = probe.axis(zero)

        def apart(values: Tensor) -> Tensor | None:
            """(B, T, O) of what is as wide as the output."""
            values = values.unsqueeze(-1) if values.dim() < 2 and probe.size == 1 else values
            if probe.size == 1:
                return batch.per_example(values.sum(dim=-1, keepdim=True))
            return batch.per_example(values.movedim(axis, -1))

        values = apart(slope)
        inputs = None if values is None else torch.ones_like(values[:, :, :1])
        return Tokens(inputs, lambda gradient: apart(slope * gradient))


class _Probe:
    """A module with other values of one of its vectors.

    All of it is computed in float32 at least: in 16 bits, the step from 0 to 1 may be less than the rounding of a
    large output. (Not so where modules are among the arguments, as DoRA's: theirs is the dtype.)
    """

    def __init__(self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self.module, self.parameter = module, parameter
        vector = module._parameters[parameter]
        assert vector is not None
        self.size, self._shape = vector.numel(), vector.shape
        arguments = (*args, *kwargs.values())
        self._widen = not any(isinstance(argument, nn.Module) for argument in arguments)
        first = next(iter(tensors_in(arguments)), vector)
        self._options: dict[str, Any] = {"dtype": self._wide(vector).dtype, "device": first.device}
        self._args = tuple(self._wide(argument) for argument in args)
        self._kwargs = {name: self._wide(argument) for name, argument in kwargs.items()}
        self._others = {name: self._wide(held) for name, held in module._parameters.items() if held is not None}

    def output(self, value: float) -> Tensor:
        """What comes out with this number in each place of the vector."""
        return self._output(torch.full(self._shape, value, **self._options))

    def axis(self, zero: Tensor) -> int:
        """Which axis of the output the vector's elements are along. `zero`: the output where they are all zero."""
        axes = [axis for axis in range(zero.dim() - 1, -1, -1) if zero.shape[axis] == self.size]
        axes = [axis for axis in axes if axis or zero.dim() == 1]  # the first one is that of the examples
        if self.size == 1:
            return -1
        if len(axes) == 1:
            return axes[0]
        alone = torch.zeros(self._shape, **self._options)
        alone.view(-1)[0] = 1
        changed = (self._output(alone) - zero) != 0
        along = [axis for axis in axes if not bool(changed.narrow(axis, 1, self.size - 1).any())]
        if not along:
            raise UnsupportedModuleError(
                f"the output {tuple(zero.shape)} of a {type(self.module).__name__} has no axis along which its "
                f"{self.parameter} ({self.size}) acts element by element"
            )
        return along[0]

    def _output(self, vector: Tensor) -> Tensor:
        output = output_with(self.module, {**self._others, self.parameter: vector}, self._args, self._kwargs)
        return self._wide(output)

    def _wide(self, value: Any) -> Any:
        narrow = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < torch.float32.itemsize
        return value.detach().float() if narrow and self._widen else value


def _is_vector(weight: Tensor) -> bool:
    """Whether all but one of its axes have a single element."""
    return weight.numel() == max(weight.shape, default=1)
