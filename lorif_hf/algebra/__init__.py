"""Tensors in, tensors out: projection, factors, curvature, scoring. Knows no model, no file, no Hub."""

from . import curvature, factors, projection, scoring


__all__ = ["curvature", "factors", "projection", "scoring"]
