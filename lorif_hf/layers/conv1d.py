"""transformers' `Conv1D`, the linear layer of GPT-2."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from .base import BatchShape, LayerKind, first_argument, holds_parameter


class Conv1D(LayerKind):
    """transformers' `Conv1D`: y = x W + b, its weight is kept I x O."""

    name = "conv1d"
    weight = "weight"
    linear = True
    forward_of = TransformersConv1D

    def accepts(self, module: nn.Module) -> bool:
        return isinstance(module, TransformersConv1D) and holds_parameter(module, self.weight)

    def features(self, module: nn.Module) -> tuple[int, int]:
        return module.nx, module.nf  # type: ignore[return-value]

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tensor | None:
        return batch.per_example(first_argument(args, kwargs))

    def output_gradients(self, module: nn.Module, gradient: Tensor, batch: BatchShape) -> Tensor | None:
        return batch.per_example(gradient)
