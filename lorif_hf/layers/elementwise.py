"""Parameters that scale or shift each feature by itself: of norms, layer scales, DoRA's magnitudes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .base import BatchShape, LayerKind, MatrixShape, Tokens
from .offloading import offloaded
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
        return whole and all(is_vector(held) for held in module._parameters.values() if held is not None)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(1, getattr(module, parameter).numel())

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        arguments = (*args, *kwargs.values())
        # DoRA's magnitudes are called with modules, whose dtype is that of their own weights.
        wide = (lambda value: value) if any(isinstance(a, nn.Module) for a in arguments) else widened
        parameters = {name: value for name, value in module._parameters.items() if value is not None}
        vector = wide(parameters[parameter])
        # An offloaded module may compute elsewhere than where its inputs come from, and has no weights outside of it.
        device = next(iter(tensors_in(arguments)), vector).device if vector.is_meta else vector.device
        held = {name: wide(_present(module, name, value, device)) for name, value in parameters.items()}

        def there(value: Any) -> Any:
            return wide(value).to(device) if isinstance(value, Tensor) else value

        wide_args, wide_kwargs = tuple(map(there, args)), {name: there(value) for name, value in kwargs.items()}

        def call(other: Tensor) -> Tensor:
            output: Tensor = output_with(module, {**held, parameter: other}, wide_args, wide_kwargs)
            return output

        example = torch.empty(vector.shape, dtype=vector.dtype, device=device)
        return affine_tokens(call, example, batch, f"the output %s of a {type(module).__name__}", parameter)


def _present(module: nn.Module, name: str, value: Tensor, device: torch.device) -> Tensor:
    """A parameter's numbers, also of one that was there in the module's call alone."""
    stored = offloaded(module, name) if value.is_meta else None
    return value if stored is None else stored.to(device)


def affine_tokens(call: Callable[[Tensor], Tensor], vector: Tensor, batch: BatchShape, what: str, name: str) -> Tokens:
    """The tokens of a vector along which an output is affine, element by element.

    Args:
        call (`Callable`): from another vector in its place to the output that there would be, without a graph; in
            float32 at least: in 16 bits, the step from 0 to 1 may be less than the rounding of a large output.
        vector (`Tensor`): of its shape, dtype and device.
        batch (`BatchShape`): the batch.
        what (`str`): what an error calls the output, with a place for its shape.
        name (`str`): and the vector.

    Raises:
        [`~lorif_hf.errors.UnsupportedModuleError`]: no axis of the output is that of the vector.
    """
    zero = call(torch.zeros_like(vector))
    slope = call(torch.ones_like(vector)) - zero  # h, as wide as the output
    size = vector.numel()
    axis = -1 if size == 1 else _axis_of(call, vector, zero)
    if axis is None:
        raise UnsupportedModuleError(
            f"{what % (tuple(zero.shape),)} has no axis along which its {name} ({size}) acts element by element"
        )

    def apart(values: Tensor) -> Tensor | None:
        """(B, T, O) of what is as wide as the output."""
        if size > 1:
            return batch.per_example(values.movedim(axis, -1))
        values = values.unsqueeze(-1) if values.dim() < 2 else values
        return batch.per_example(values.sum(dim=-1, keepdim=True))

    values = apart(slope)
    inputs = None if values is None else torch.ones_like(values[:, :, :1])
    return Tokens(inputs, lambda gradient: apart(slope * gradient))


def is_vector(weight: Tensor) -> bool:
    """Whether all but one of its axes have a single element."""
    return weight.numel() == max(weight.shape, default=1)


def widened(value: Any) -> Any:
    """A tensor of 16 bits in float32, without a graph; all else as it is."""
    narrow = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < torch.float32.itemsize
    return value.detach().float() if narrow else value


def _axis_of(call: Callable[[Tensor], Tensor], vector: Tensor, zero: Tensor) -> int | None:
    """Which axis of an output a vector's elements are along. `zero`: the output where they are all zero."""
    axes = [axis for axis in range(zero.dim() - 1, -1, -1) if zero.shape[axis] == vector.numel()]
    axes = [axis for axis in axes if axis or zero.dim() == 1]  # the first one is that of the examples
    if len(axes) == 1:
        return axes[0]
    alone = torch.zeros_like(vector)
    alone.view(-1)[0] = 1
    changed = (call(alone) - zero) != 0
    return next((axis for axis in axes if not bool(changed.narrow(axis, 1, vector.numel() - 1).any())), None)
