"""`nn.Linear`, the LoRA matrices of PEFT among them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .base import BatchShape, LayerKind, MatrixShape, Tokens, first_argument


class Linear(LayerKind):
    """`nn.Linear`: y = x W^T + b, its weight is kept O x I."""

    name = "linear"
    linear = True
    forward_of = nn.Linear

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        # The output projection inside nn.MultiheadAttention is a Linear in name only: it is never called.
        never_called = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        return isinstance(module, nn.Linear) and not never_called and parameter == "weight"

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(module.in_features, module.out_features)  # type: ignore[arg-type]

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return Tokens(batch.per_example(first_argument(args, kwargs)), batch.per_example)
