"""The bias of a linear layer or a convolution."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .base import BatchShape, LayerKind, MatrixShape, Tokens, first_argument
from .convolution import Windows, is_convolution


class Bias(LayerKind):
    """What a layer adds to each token of its output: X is 1, and dY is the output's gradient as it comes.

    Of `nn.Linear` and what derives from it (quantised layers too, whose weight is frozen), transformers' `Conv1D`, and
    convolutions.
    """

    name = "bias"
    linear = False

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        # The output projection inside nn.MultiheadAttention is never called.
        never_called = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        called = isinstance(module, (nn.Linear, Conv1D)) and not never_called
        return parameter == "bias" and (called or is_convolution(module))

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(1, getattr(module, parameter).numel())

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        inputs = first_argument(args, kwargs)
        if is_convolution(module):
            windows = Windows.of(module)
            count = len(windows.positions_first(inputs))
            ones = batch.per_example(inputs.new_ones(count, *windows.count(inputs), 1))
            return Tokens(ones, lambda gradient: batch.per_example(windows.positions_first(gradient)))
        tokens = batch.per_example(inputs)
        return Tokens(None if tokens is None else tokens.new_ones(*tokens.shape[:2], 1), batch.per_example)
