"""Gradients stored whole."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..algebra.matrices import Matrices, dense
from ..algebra.scoring import DENSE_ROWS, Workspace
from ..config import InfluenceConfig
from ..errors import ConfigError
from .base import Codec, Layout, Parts, widened


@dataclass(frozen=True)
class DenseCodec(Codec):
    """The whole projected gradient, D = d1 d2 numbers, as LoGRA and TRAK store it."""

    dtype: torch.dtype
    name: ClassVar[str] = "dense"
    pairs = None
    products = 0

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "DenseCodec":
        if config.factor_rank is not None:
            raise ConfigError(f"A dense index has no rank: set factor_rank=None, got {config.factor_rank}.")
        if config.bits != 16:
            raise ConfigError(
                f"bits={config.bits} needs factors: a dense index (factor_rank=None) is stored as dtype. Set a rank."
            )
        return cls(getattr(torch, config.dtype))

    def layout(self, d1: int, d2: int) -> Layout:
        return {"g": (self.dtype, (d1, d2))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        return {"g": dense(matrices).to(self.dtype)}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        return parts["g"], None

    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return widened(parts["g"][rows], "left", workspace, DENSE_ROWS), None, None
