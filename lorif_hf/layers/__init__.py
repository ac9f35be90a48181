"""Kinds of layer: what their inputs and output gradients are, token by token, example by example. One file a kind."""

from ..registry import LAYER_KINDS
from .base import BatchShape, LayerKind, MatrixShape, Tokens, kind_of
from .conv1d import Conv1D
from .experts import Experts, ExpertsBias, TransposedExperts
from .linear import Linear
from .router import Router


register = LAYER_KINDS.register
for _kind in (Router, Linear, Conv1D, Experts, TransposedExperts, ExpertsBias):
    register(_kind)

__all__ = [
    "BatchShape",
    "Conv1D",
    "Experts",
    "ExpertsBias",
    "LayerKind",
    "Linear",
    "MatrixShape",
    "Router",
    "Tokens",
    "TransposedExperts",
    "kind_of",
    "register",
]
