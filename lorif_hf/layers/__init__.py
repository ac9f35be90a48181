"""Kinds of layer: what their inputs and output gradients are, token by token, example by example. One file a kind."""

from ..registry import LAYER_KINDS
from .adapter_matrix import AdapterMatrix
from .base import BatchShape, LayerKind, MatrixShape, Tokens, kind_of
from .bias import Bias
from .conv1d import Conv1D
from .convolution import Convolution
from .elementwise import Elementwise
from .embedding import Embedding
from .experts import Experts, ExpertsBias, TransposedExperts
from .linear import Linear
from .positions import Positions
from .router import Router
from .stacks import Stack, TransposedStack
from .vector import Vector


register = LAYER_KINDS.register
_EXPERTS = (Experts, TransposedExperts, ExpertsBias, Stack, TransposedStack)
# The last goes first: what all vectors have in common comes before what is known of some modules.
_TABLES = (Embedding, Positions, AdapterMatrix)
for _kind in (Vector, *_TABLES, Elementwise, Bias, Convolution, Router, Linear, Conv1D, *_EXPERTS):
    register(_kind)

__all__ = [
    "AdapterMatrix",
    "BatchShape",
    "Bias",
    "Conv1D",
    "Convolution",
    "Elementwise",
    "Embedding",
    "Experts",
    "ExpertsBias",
    "LayerKind",
    "Linear",
    "MatrixShape",
    "Positions",
    "Router",
    "Stack",
    "Tokens",
    "TransposedExperts",
    "TransposedStack",
    "Vector",
    "kind_of",
    "register",
]
