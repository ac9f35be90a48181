"""Kinds of curvature: what is gathered first, how it is fitted, loaded and applied to a query. One file a kind."""

from ..registry import CURVATURES
from .base import Cost, Curvature, FirstPass, Fitted, Tensors, curvature_of
from .kronecker import KroneckerCurvature
from .low_rank import LowRankCurvature
from .none import NoCurvature


register = CURVATURES.register
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
    "curvature_of",
    "register",
]
