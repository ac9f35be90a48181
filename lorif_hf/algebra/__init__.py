"""Tensors in, tensors out. Knows no model, no file, no Hub."""

from . import codecs, curvature, factors, low_rank, projection, quantization, ranking, scoring, whitening


__all__ = [
    "codecs",
    "curvature",
    "factors",
    "low_rank",
    "projection",
    "quantization",
    "ranking",
    "scoring",
    "whitening",
]
