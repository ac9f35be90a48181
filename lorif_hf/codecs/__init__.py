"""Kinds of codec: how a layer's gradients become the bytes of a shard, and are scored from there. One file a kind."""

from ..algebra.matrices import Matrices
from ..algebra.scoring import DENSE_ROWS, Workspace
from ..registry import CODECS
from .base import Codec, Layout, Parts, codec_of, widened
from .dense import DenseCodec
from .factored import FactoredCodec
from .packed import PackedCodec


register = CODECS.register
for _kind in (DenseCodec, FactoredCodec, PackedCodec):
    register(_kind)

__all__ = [
    "DENSE_ROWS",
    "Codec",
    "DenseCodec",
    "FactoredCodec",
    "Layout",
    "Matrices",
    "PackedCodec",
    "Parts",
    "Workspace",
    "codec_of",
    "register",
    "widened",
]
