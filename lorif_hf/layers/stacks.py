"""Stacked matrices of experts that a module multiplies with by itself, one after another or all at once (Llama 4,
JetMoE, LongCat, experts of one's own): the layers of [`experts`][lorif_hf.layers.experts], but followed."""

import dis
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .base import BatchShape, LayerKind, MatrixShape, Tokens
from .experts import dispatches, is_stacked


def _is_stack(module: nn.Module, parameter: str) -> bool:
    """Whether a parameter holds a matrix for each of the experts that a module says it has."""
    weight = module._parameters[parameter]
    if weight is None or not is_stacked(weight) or dispatches(module):
        return False
    return any("expert" in name and value == len(weight) for name, value in vars(module).items())


def _multiplied(module: nn.Module, parameter: str) -> str | None:
    """By what the module's `forward` multiplies, `"linear"` or `"product"`; `None`: by neither, or not with this
    parameter. It tells the orientation in most models, and where it does not, what is recorded is right all the same:
    the matrices are only called transposed."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None or parameter not in code.co_names:
        return None
    if "linear" in code.co_names:
        return "linear"
    operators = {instruction.argrepr for instruction in dis.get_instructions(code)}
    return "product" if "@" in operators or {"bmm", "matmul", "mm"} & set(code.co_names) else None


def _never_called(module: nn.Module) -> Tokens:
    raise UnsupportedModuleError(f"The products of a {type(module).__name__} are followed, not its calls.")


class Stack(LayerKind):
    """Stacked matrices (E, O, I) that a module hands to `torch.nn.functional.linear` one by one: y = x W[e]^T.

    Which experts a token goes to is not told, so that rows are recorded one at a time.
    """

    name = "stack"
    linear = True
    forward_of = nn.Linear  # which none of them has: they are followed

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return _is_stack(module, parameter) and _multiplied(module, parameter) == "linear"

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        count, size_out, size_in = module._parameters[parameter].shape  # type: ignore[union-attr]
        return MatrixShape(size_in, count * size_out, out_width=size_out)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(2, 0, 1).flatten(1)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return _never_called(module)


class TransposedStack(LayerKind):
    """The same of matrices (E, I, O) that a module multiplies with from the right: y = x W[e]."""

    name = "stack-transposed"
    linear = True
    forward_of = nn.Linear

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return _is_stack(module, parameter) and _multiplied(module, parameter) == "product"

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        count, size_in, size_out = module._parameters[parameter].shape  # type: ignore[union-attr]
        return MatrixShape(size_in, count * size_out, out_width=size_out)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.permute(1, 0, 2).flatten(1)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return _never_called(module)


STACKS = (Stack, TransposedStack)
"""The kinds whose weights are followed matrix by matrix."""
