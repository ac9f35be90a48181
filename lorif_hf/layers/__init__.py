"""Kinds of layer: what their inputs and output gradients are, token by token, example by example. One file a kind."""

from .base import BatchShape, LayerKind, kind_of, register
from .conv1d import Conv1D
from .linear import Linear


for _kind in (Linear, Conv1D):
    register(_kind)

__all__ = ["BatchShape", "Conv1D", "LayerKind", "Linear", "kind_of", "register"]
