"""`nn.Linear`, the LoRA matrices of PEFT among them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .base import BatchShape, LayerKind, first_argument, holds_parameter


class Linear(LayerKind):
    """`nn.Linear`: y = x W^T + b, its weight is kept O x I."""

    name = "linear"
    weight = "weight"
    linear = True
    forward_of = nn.Linear

    def accepts(self, module: nn.Module) -> bool:
        # The output projection inside nn.MultiheadAttention is a Linear in name only: it is never called.
        never_called = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        return isinstance(module, nn.Linear) and not never_called and holds_parameter(module, self.weight)

    def features(self, module: nn.Module) -> tuple[int, int]:
        return module.in_features, module.out_features  # type: ignore[return-value]

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tensor | None:
        return batch.per_example(first_argument(args, kwargs))

    def output_gradients(self, module: nn.Module, gradient: Tensor, batch: BatchShape) -> Tensor | None:
        return batch.per_example(gradient)
