"""Kinds of curvature: what is gathered first, how it is fitted, loaded and applied to a query. One file a kind."""

from .base import Cost, Curvature, FirstPass, Fitted, Tensors, Whitener, curvature_of, register
from .kronecker import KroneckerCurvature
from .low_rank import LowRankCurvature
from .none import NoCurvature


for _kind in (LowRankCurvature, KroneckerCurvature, NoCurvature):
    register(_kind)

__all__ = [
    "Cost",
    "Curvature",
    "FirstPass",
    "Fitted",
    "KroneckerCurvature",
    "LowRankCurvature",
    "NoCurvature",
    "Tensors",
    "Whitener",
    "curvature_of",
    "register",
]
