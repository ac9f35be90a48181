"""Tensors in, tensors out. Knows no model, no file, no Hub."""

from . import codecs, curvature, factors, projection, quantization, scoring, whitening


__all__ = ["codecs", "curvature", "factors", "projection", "quantization", "scoring", "whitening"]
