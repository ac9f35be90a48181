"""The Kronecker-factored curvature (K-FAC): gradients are whitened by a layer's second moments before they are cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.matrices import Reduction
from ..algebra.rangefinder import RangeFinder
from ..algebra.statistic import Statistic
from ..algebra.whitening import SecondMoments, inverse_roots
from ..config import InfluenceConfig
from ..errors import ConfigError, RecordingError
from ..storage.layout import ModuleEntry
from ..storage.shards import ModuleTensors
from .base import Cost, FirstPass, FixedCurvature, Tensors


SIDES = ("in_whitener", "out_whitener")


@dataclass(frozen=True)
class MomentsPass(FirstPass):
    """The second moments of a layer's inputs and output gradients, and their damped inverse roots.

    Args:
        samples (`int`): rows of the sample.
        damping (`float`): in units of a moment's mean eigenvalue.
    """

    samples: int
    damping: float

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "MomentsPass | None":
        """`None`: the config does not whiten."""
        return None if config.whitening == "none" else cls(config.whitening_samples, config.whitening_damping)

    def statistic(self, entry: ModuleEntry) -> SecondMoments:
        return SecondMoments.zeros(entry.d1, entry.d2)

    def tensors(self, entry: ModuleEntry, statistic: Statistic, scale: float) -> Tensors:
        assert isinstance(statistic, SecondMoments)  # its own
        try:
            return dict(zip(SIDES, inverse_roots(statistic, damping=self.damping, scale=scale), strict=True))
        except ValueError as error:
            raise RecordingError(
                f"Module '{entry.name}' cannot be whitened ({error}): its inputs or gradients are too large. Leave it "
                "out with exclude_modules, or set whitening='none'."
            ) from None

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        return {side: stored.read(side, (size, size)) for side, size in zip(SIDES, (entry.d1, entry.d2), strict=True)}

    def whiten(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        in_whitener, out_whitener = (tensors[side].to(gradients.device) for side in SIDES)
        return in_whitener @ gradients @ out_whitener

    def reduction(self, tensors: Tensors, width: int) -> Reduction:
        return RangeFinder(tensors["in_whitener"], tensors["out_whitener"], width)

    def cost(self, entry: ModuleEntry) -> Cost:
        squares = entry.d1**2 + entry.d2**2
        whitening = 2.0 * entry.d1 * entry.d2 * (entry.d1 + entry.d2)
        return Cost(stored=torch.float32.itemsize * squares, memory=torch.float64.itemsize * squares, flops=whitening)


@dataclass(frozen=True)
class KroneckerCurvature(FixedCurvature):
    """The second moments that whitened the index: both sides are whitened, and nothing more is to be done.

    Source: K-FAC (Martens and Grosse 2015, arXiv:1503.05671).
    """

    first_pass: MomentsPass
    name = "kronecker"

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "KroneckerCurvature":
        first_pass = MomentsPass.from_config(config)
        if first_pass is None:
            raise ConfigError("curvature='kronecker' is what whitening='kronecker' estimates: set both.")
        return cls(first_pass)
