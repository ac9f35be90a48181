"""Stacked matrices of experts that a module multiplies with by itself, one after another or all at once (Llama 4,
JetMoE, LongCat, experts of one's own): the layers of [`experts`][lorif_hf.layers.experts], but followed."""

import dis
import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

from torch import nn

from ..errors import UnsupportedModuleError
from .base import BatchShape
from .experts import StackedKind, dispatches, is_stacked


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


class FollowedStack(StackedKind):
    """Stacked matrices that a module multiplies with by itself: they are followed.

    Which experts a token goes to is not told, so that rows are recorded one at a time.
    """

    forward_of = nn.Linear  # which none of them has

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        how = "product" if self.transposed else "linear"
        return _is_stack(module, parameter) and _multiplied(module, parameter) == how

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> NoReturn:
        raise UnsupportedModuleError(f"The products of a {type(module).__name__} are followed, not its calls.")


class Stack(FollowedStack):
    """Matrices (E, O, I), handed to `torch.nn.functional.linear` one by one: y = x W[e]^T."""

    name = "stack"
    transposed = False


class TransposedStack(FollowedStack):
    """Matrices (E, I, O), multiplied with from the right: y = x W[e]."""

    name = "stack-transposed"
    transposed = True


STACKS = (Stack, TransposedStack)
"""The kinds whose weights are followed matrix by matrix."""
