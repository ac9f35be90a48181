"""Kinds of layer: what their inputs and output gradients are, token by token, example by example. One file a kind."""

from ..registry import LAYER_KINDS
from .base import BatchShape, LayerKind, MatrixShape, Tokens, kind_of
from .conv1d import Conv1D
from .linear import Linear


register = LAYER_KINDS.register
for _kind in (Linear, Conv1D):
    register(_kind)

__all__ = ["BatchShape", "Conv1D", "LayerKind", "Linear", "MatrixShape", "Tokens", "kind_of", "register"]
