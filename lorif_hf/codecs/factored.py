"""Rank-c factors in a floating-point type."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..algebra.factors import factor_products, factorize
from ..algebra.matrices import Matrices
from ..algebra.scoring import Workspace
from ..config import InfluenceConfig
from ..errors import ConfigError
from .base import Codec, Layout, Parts, widened


@dataclass(frozen=True)
class FactoredCodec(Codec):
    """Rank-c factors in a floating-point type: c (d1 + d2) numbers, as LoRIF stores them.

    Each vector's numbers stand side by side: turning them at every query would take longer than scoring them.
    """

    pairs: int
    dtype: torch.dtype
    name: ClassVar[str] = "factored"

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "FactoredCodec":
        if config.factor_rank is None or config.bits != 16:
            raise ConfigError(
                f"Factors in a floating-point type need a rank and bits=16, got factor_rank={config.factor_rank} and "
                f"bits={config.bits}."
            )
        return cls(config.factor_rank, getattr(torch, config.dtype))

    @property
    def products(self) -> int:  # type: ignore[override]
        return factor_products(self.pairs)

    def layout(self, d1: int, d2: int) -> Layout:
        return {"u": (self.dtype, (self.pairs, d1)), "v": (self.dtype, (self.pairs, d2))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        rank = min(self.pairs, *matrices.shape[1:])
        left, right = (pad(side, (0, self.pairs - rank)) for side in factorize(matrices, rank))
        return {name: side.mT.to(self.dtype).contiguous() for name, side in (("u", left), ("v", right))}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        return parts["u"].mT, parts["v"].mT

    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return widened(parts["u"][rows], "left", workspace), widened(parts["v"][rows], "right", workspace), None
