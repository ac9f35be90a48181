"""Kinds of curvature: what is gathered first, how it is fitted, loaded and applied to a query. One file a kind."""

from ..algebra.gradients import StoredGradients
from ..algebra.statistic import Statistic
from ..registry import CURVATURES
from ..storage.layout import ModuleEntry
from ..storage.shards import ModuleTensors
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
    "ModuleEntry",
    "ModuleTensors",
    "NoCurvature",
    "Statistic",
    "StoredGradients",
    "Tensors",
    "curvature_of",
    "register",
]
