"""What functions do with a followed weight that no product meets: convolutions, sums with a table of positions, and
what is affine in a vector."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.sides import OneHot
from ..errors import UnsupportedModuleError
from ..layers import BatchShape, Positions, Tokens
from ..layers.convolution import Windows
from ..layers.elementwise import affine_tokens, is_vector, widened
from .layer_hook import LayerHook


@dataclass(frozen=True)
class Use:
    """A use of a followed weight.

    Args:
        hook (`LayerHook`): the weight's.
        tokens (`Callable`): from the batch to what the function does with it.
    """

    hook: LayerHook
    tokens: Callable[[BatchShape], Tokens]


def uses_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], hook_of: Callable[[Tensor], Any]
) -> Iterator[Use]:
    """The followed weights among the arguments of a function that does with them what is known here.

    Args:
        func, args, kwargs: the call.
        hook_of (`Callable`): the hook of a tensor that is a followed weight, else `None`.
    """
    if func not in _NAMES:
        return
    given = {**dict(zip(_NAMES[func], args, strict=False)), **kwargs}
    hooks = {name: hook_of(value) for name, value in given.items() if isinstance(value, Tensor)}
    for name, hook in hooks.items():
        if hook is None or list(hooks.values()).count(hook) > 1:  # none, or a square of it, say
            continue
        weight, shape = given[name], hook.tracked.matrix_shape
        if func in _CONVOLUTIONS and name == "weight":
            if weight.dim() == _CONVOLUTIONS[func] + 2 and len(weight) == shape[1]:
                yield Use(hook, _convolved(given))
        elif func in _SUMS and shape == weight.shape[-2:] and hook.tracked.kind.name == Positions.name:
            yield Use(hook, _added(given["other" if name == "input" else "input"], weight))
        elif shape == (1, weight.numel()) and is_vector(weight) and name == _VECTOR.get(func, name):
            yield Use(hook, _affine(func, args, kwargs, name))


def _convolved(given: Mapping[str, Any]) -> Callable[[BatchShape], Tokens]:
    options = {name: given[name] for name in ("stride", "padding", "dilation", "groups") if name in given}
    windows = Windows.called(given["weight"].shape[2:], **options)
    return lambda batch: windows.tokens(given["input"], batch)


def _added(tokens: Any, table: Tensor) -> Callable[[BatchShape], Tokens]:
    """Of a table (N, O) that is added to tokens (B, N, O)."""

    def told(batch: BatchShape) -> Tokens:
        apart = batch.per_example(tokens) if isinstance(tokens, Tensor) and tokens.dim() == 3 else None
        if apart is None or tokens.shape[1:] != table.shape[-2:] or apart.shape[1] % table.shape[-2]:
            return Tokens(None, lambda gradient: None)
        size = table.shape[-2]
        ids = torch.arange(apart.shape[1], device=table.device).remainder(size).expand(batch.examples, -1)
        return Tokens(OneHot(ids, size, tokens.dtype), batch.per_example)

    return told


def _affine(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> Callable[[BatchShape], Tokens]:
    """The tokens of the vector that the function calls `name`."""
    names = _NAMES[func]
    place = names.index(name) if name in names[: len(args)] else None
    wide_args, wide_kwargs = [widened(a) for a in args], {n: widened(value) for n, value in kwargs.items()}
    vector = wide_kwargs[name] if place is None else wide_args[place]

    def call(other: Tensor) -> Tensor:
        others = [other if i == place else value for i, value in enumerate(wide_args)]
        with torch.no_grad():
            output: Tensor = func(*others, **(wide_kwargs if place is not None else {**wide_kwargs, name: other}))
        return output

    def tokens(batch: BatchShape) -> Tokens:
        try:
            return affine_tokens(call, vector.contiguous(), batch, "the output %s", name)
        except UnsupportedModuleError:
            return Tokens(None, lambda gradient: None)

    return tokens


_CONVOLUTIONS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_TRANSPOSED = F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d
_SUMS = torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__
_DIFFERENCES = torch.sub, Tensor.sub, Tensor.__sub__
_PRODUCTS = torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__
_QUOTIENTS = torch.div, Tensor.div, Tensor.__truediv__
_ADDED_PRODUCTS = torch.addmm, Tensor.addmm
# What each function calls its arguments.
_NAMES: dict[Any, Sequence[str]] = {
    **dict.fromkeys(_CONVOLUTIONS, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    **dict.fromkeys(_TRANSPOSED, ("input", "weight", "bias")),
    **dict.fromkeys((*_SUMS, *_DIFFERENCES, *_PRODUCTS, *_QUOTIENTS), ("input", "other")),
    **dict.fromkeys(_ADDED_PRODUCTS, ("input", "mat1", "mat2")),
    F.linear: ("input", "weight", "bias"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias"),
    F.rms_norm: ("input", "normalized_shape", "weight"),
    F.group_norm: ("input", "num_groups", "weight", "bias"),
    Tensor.expand: ("input",),
    Tensor.expand_as: ("input", "other"),
    Tensor.repeat: ("input",),
}
# The argument in which alone what comes out is affine element by element.
_VECTOR: dict[Any, str] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED, F.linear), "bias"),
    **dict.fromkeys((*_ADDED_PRODUCTS, *_QUOTIENTS), "input"),
}
