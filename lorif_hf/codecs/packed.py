"""Rank-c factors at a few bits a number."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..algebra.matrices import Matrices
from ..algebra.quantization import PAIR_PRODUCTS, look_up, pack, packed_bytes, quantized_factors, unpack
from ..algebra.scoring import Workspace
from ..algebra.sign_scoring import SignPairs
from ..config import InfluenceConfig
from ..errors import ConfigError
from .base import Codec, Layout, Parts, filled_up, widened


@dataclass(frozen=True)
class PackedCodec(Codec):
    """Rank-c factors at `bits` bits a number, with one scale for each pair of vectors, fitted to the gradient."""

    pairs: int
    bits: int
    name: ClassVar[str] = "packed"

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "PackedCodec":
        if config.factor_rank is None or config.bits == 16:
            raise ConfigError(
                f"Packed factors need a rank and at most 8 bits a number, got factor_rank={config.factor_rank} and "
                f"bits={config.bits}."
            )
        if config.dtype != "bfloat16":
            raise ConfigError(
                f"bits={config.bits} says how factors are stored, and so does dtype={config.dtype!r}: set one."
            )
        return cls(config.factor_rank, config.bits)

    @property
    def products(self) -> int:  # type: ignore[override]
        return self.pairs * PAIR_PRODUCTS

    def layout(self, d1: int, d2: int) -> Layout:
        sides = {
            side: (torch.uint8, (self.pairs, packed_bytes(extent, self.bits)))
            for side, extent in (("u", d1), ("v", d2))
        }
        return {**sides, "u_scale": (torch.bfloat16, (self.pairs,))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        factors = quantized_factors(matrices, self.pairs, self.bits)
        scales = factors.scales / factors.shares.unsqueeze(1)
        return {
            "u": pack(factors.left, self.bits),
            "v": pack(factors.right, self.bits),
            "u_scale": scales.to(torch.bfloat16),
        }

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        scales = parts["u_scale"].float().unsqueeze(1)
        left, right = (unpack(parts[side], extent, self.bits).mT for side, extent in (("u", d1), ("v", d2)))
        return left * scales, right

    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        sides = []
        for side, extent, name in (("u", d1, "left"), ("v", d2, "right")):
            packed = parts[side].numpy()[rows]
            count, pairs, size = packed.shape
            levels = workspace.take(name, filled_up(count), pairs, size * 8 // self.bits)
            look_up(packed, self.bits, levels.numpy()[:count])
            sides.append(levels if extent == levels.shape[2] else levels[:, :, :extent])
        return sides[0], sides[1], widened(parts["u_scale"][rows], "scales", workspace)

    def signs(self, parts: Parts, rows: slice) -> SignPairs | None:
        return SignPairs(parts["u"][rows], parts["v"][rows], parts["u_scale"][rows]) if self.bits == 1 else None
