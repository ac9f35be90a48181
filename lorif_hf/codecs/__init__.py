"""Kinds of codec: how a layer's gradients become the bytes of a shard, and are scored from there. One file a kind."""

from ..registry import CODECS
from .base import Codec, Layout, Parts, codec_of
from .dense import DenseCodec
from .factored import FactoredCodec
from .packed import PackedCodec


register = CODECS.register
for _kind in (DenseCodec, FactoredCodec, PackedCodec):
    register(_kind)

__all__ = ["Codec", "DenseCodec", "FactoredCodec", "Layout", "PackedCodec", "Parts", "codec_of", "register"]
