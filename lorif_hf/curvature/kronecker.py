"""The Kronecker-factored curvature (K-FAC): gradients are whitened by a layer's second moments before they are cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.matrices import Reduction
from ..algebra.rangefinder import RangeFinder
from ..algebra.statistic import Statistic
from ..algebra.tables import TableMoments, table_roots
from ..algebra.token_factors import TokenFactors
from ..algebra.whitening import SecondMoments, whiteners
from ..config import InfluenceConfig
from ..errors import ConfigError, RecordingError
from ..storage.layout import ModuleEntry
from ..storage.shards import ModuleTensors
from .base import Cost, FirstPass, FixedCurvature, Tensors


SIDES = ("in_whitener", "out_whitener")
_ROOT = 8.0  # d^3 operations in float32 take as long as a whitener of side d does in float64
_ROOT_COPIES = 5  # of a moment in float64, at the peak
TABLE_SIDES = ("in_scale", "out_whitener")


@dataclass(frozen=True)
class MomentsPass(FirstPass):
    """The second moments of a layer's inputs and output gradients, and what whitens them. Layers with the same inputs
    share that of their inputs. Of a table (an embedding) it is a diagonal, whose root scales them before they are
    projected.

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

    def statistic(self, entry: ModuleEntry) -> SecondMoments | TableMoments:
        if entry.is_table:
            return TableMoments.zeros(entry.in_features, entry.d2)
        return SecondMoments.zeros(None if entry.input_of else entry.d1, entry.d2)

    def tensors(self, entry: ModuleEntry, statistic: Statistic, scale: float) -> Tensors:
        try:
            if isinstance(statistic, TableMoments):
                roots = table_roots(statistic, damping=self.damping, scale=scale)
                return dict(zip(TABLE_SIDES, roots, strict=True))
            assert isinstance(statistic, SecondMoments)  # its own
            sides = whiteners(statistic, damping=self.damping, scale=scale)
            return {name: side for name, side in zip(SIDES, sides, strict=True) if side is not None}
        except ValueError as error:
            raise RecordingError(
                f"Module '{entry.name}' cannot be whitened ({error}): its inputs or gradients are too large. Leave it "
                "out with exclude_modules, or set whitening='none'."
            ) from None

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        out_whitener = {"out_whitener": stored.read("out_whitener", (entry.d2, entry.d2))}
        if entry.is_table:
            return {"in_scale": stored.read("in_scale", (entry.in_features,), least=0)} | out_whitener
        of_inputs = stored.of(entry.input_of or entry.name)
        return {"in_whitener": of_inputs.read("in_whitener", (entry.d1, entry.d1))} | out_whitener

    def whiten(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        in_whitener = tensors.get("in_whitener")
        scaled = gradients if in_whitener is None else in_whitener.T.to(gradients.device) @ gradients
        return scaled @ tensors["out_whitener"].to(gradients.device)

    def in_scale(self, tensors: Tensors) -> Tensor | None:
        return tensors.get("in_scale")

    def reduction(self, tensors: Tensors, width: int | None) -> Reduction:
        whiteners = tensors.get("in_whitener"), tensors["out_whitener"]
        return TokenFactors(*whiteners) if width is None else RangeFinder(*whiteners, width)

    def cost(self, entry: ModuleEntry) -> Cost:
        if entry.is_table:
            rows, square = entry.in_features, entry.d2**2
            return Cost(
                stored=torch.float32.itemsize * (rows + square),
                memory=torch.float32.itemsize * 2 * (rows + square),
                flops=2.0 * entry.d1 * square,
                token_flops=2.0 * square,
                once_flops=_ROOT * entry.d2**3,
                moment_memory=_ROOT_COPIES * torch.float64.itemsize * square,
            )
        squares = (0 if entry.input_of else entry.d1**2) + entry.d2**2
        whitening = 2.0 * entry.d1 * entry.d2 * (entry.d1 + entry.d2)
        sides = [entry.d2] if entry.input_of else [entry.d1, entry.d2]
        return Cost(
            stored=torch.float32.itemsize * squares,
            memory=torch.float32.itemsize * squares,
            flops=whitening,
            token_flops=2.0 * squares,
            once_flops=_ROOT * sum(d**3 for d in sides),
            moment_memory=_ROOT_COPIES * torch.float64.itemsize * max(sides) ** 2,
        )


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
