"""The fused experts of transformers 5: E matrices of one shape, stacked in a single parameter.

Such a layer is one layer with E x O outputs, whose output gradient is zero but in the block of the token's expert. The
blocks are projected onto one another, each by signs of its own, so that all of them cost the bytes of one dense layer.
A token that goes to k experts is k tokens: its slots.
"""

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..algebra.sides import Blocks, OneHot
from .base import BatchShape, LayerKind, MatrixShape, Tokens


ALL_EXPERTS_FUNCTIONS: Any = None  # in transformers before the registry
with contextlib.suppress(ImportError):
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS


_PRODUCTS = ("gate_up_proj", "up_proj", "down_proj")


def dispatches(module: nn.Module) -> bool:
    """Whether a module asks transformers' registry of experts implementations what to compute."""
    forward = type(module).forward
    if ALL_EXPERTS_FUNCTIONS is None or not hasattr(forward, "__wrapped__"):
        return False
    names = inspect.getclosurevars(forward)
    return any(value is ALL_EXPERTS_FUNCTIONS for value in (*names.nonlocals.values(), *names.globals.values()))


def is_stacked(weight: Tensor | None) -> bool:
    """Whether a parameter holds a matrix for each of several experts, in numbers that training can change."""
    return weight is not None and weight.dim() == 3 and weight.is_floating_point() and weight.dtype.itemsize > 1


def _is_product(module: nn.Module, parameter: str, transposed: bool) -> bool:
    if parameter not in _PRODUCTS or not is_stacked(module._parameters[parameter]) or not dispatches(module):
        return False
    return bool(module.is_transposed) is transposed


def slots(tensor: Tensor, experts: Tensor, batch: BatchShape) -> Tensor | None:
    """(n k, F), a row for each slot, as (B, T k, F)."""
    apart = batch.per_example(tensor.reshape(len(experts), -1))
    return None if apart is None else apart.reshape(len(apart), -1, tensor.shape[-1])


def _tokens(inputs: Tensor, experts: Tensor, count: int, batch: BatchShape) -> Tokens:
    """Of inputs (n k, I), a row for each slot, and the experts of n tokens, (n, k)."""
    blocks = slots(experts.reshape(-1, 1), experts, batch)

    def output_gradients(gradient: Tensor) -> Blocks | None:
        values = slots(gradient, experts, batch)
        return None if values is None or blocks is None else Blocks(values, blocks.squeeze(2), count)

    return Tokens(slots(inputs, experts, batch), output_gradients)


class StackedKind(LayerKind):
    """Stacked matrices, of which each token meets those of its experts. A kind says which parameters those are, and
    what a call does with them.

    Attributes:
        transposed (`bool`): whether a matrix is kept as (I, O), and the tokens are multiplied with it from the left:
            y = x W[e]; else as (O, I).
    """

    linear = True
    transposed: ClassVar[bool]

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        count, *sides = module._parameters[parameter].shape  # type: ignore[union-attr]
        size_in, size_out = sides if self.transposed else sides[::-1]
        return MatrixShape(size_in, count * size_out, out_width=size_out)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return (weight if self.transposed else weight.mT).permute(1, 0, 2).flatten(1)


class FusedExperts(StackedKind):
    """Stacked matrices of a module that asks the registry of experts implementations.

    What it is called with is not the module's input but that of one of its two products
    ([`~lorif_hf.recording.experts.recorded_experts`]): (n k, I), a row for each slot, and the experts (n, k).
    """

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return _is_product(module, parameter, self.transposed)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        inputs, experts = args
        return _tokens(inputs, experts, len(module._parameters[parameter]), batch)  # type: ignore[arg-type]


class Experts(FusedExperts):
    """Matrices (E, O, I): y = x W[e]^T."""

    name = "experts"
    transposed = False


class TransposedExperts(FusedExperts):
    """Matrices (E, I, O), as gpt-oss keeps them: y = x W[e]."""

    name = "experts-transposed"
    transposed = True


class ExpertsBias(LayerKind):
    """The biases of stacked experts, (E, O): what a token brings to them is its expert alone, a one-hot row."""

    name = "experts-bias"
    linear = False

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return parameter in [f"{product}_bias" for product in _PRODUCTS] and dispatches(module)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(*module._parameters[parameter].shape)  # type: ignore[union-attr]

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        inputs, experts = args
        ids = slots(experts.reshape(-1, 1), experts, batch)
        size = len(module._parameters[parameter])  # type: ignore[arg-type]
        known = None if ids is None else OneHot(ids.squeeze(2), size, inputs.dtype)
        return Tokens(known, lambda gradient: slots(gradient, experts, batch))


EXPERTS = (Experts, TransposedExperts, ExpertsBias)
"""The kinds whose calls are those of the experts implementation."""
