"""transformers' `Conv1D`, the linear layer of GPT-2."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from .base import BatchShape, LayerKind, MatrixShape, Tokens, first_argument


class Conv1D(LayerKind):
    """transformers' `Conv1D`: y = x W + b, its weight is kept I x O."""

    name = "conv1d"
    linear = True
    forward_of = TransformersConv1D

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        return isinstance(module, TransformersConv1D) and parameter == "weight"

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(module.nx, module.nf)  # type: ignore[arg-type]

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return Tokens(batch.per_example(first_argument(args, kwargs)), batch.per_example)
