"""How gradients are stored: dense, as rank-c factors, or as factors at a few bits a number.

A codec turns a batch of gradient matrices (n, d1, d2) into named tensors with the examples along their first axis
("parts"), and scores parts against preconditioned queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import factorize
from .quantization import pack, packed_bytes, quantized_factors, unpack
from .rangefinder import Matrices
from .scoring import bilinear_scores, dense_scores


Parts = Mapping[str, Tensor]
"""The stored tensors of one layer and some examples, by name."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Of each part: its dtype and the shape of one example's share."""


class Codec(ABC):
    """One way to store gradients."""

    @abstractmethod
    def layout(self, d1: int, d2: int) -> Layout:
        """The parts of a layer whose projected gradients are d1 x d2."""

    @abstractmethod
    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        """Gradients (n, d1, d2), float32, to parts on the CPU. Each example is encoded alone."""

    @abstractmethod
    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        """left (n, d1, c) and right (n, d2, c), whose product is what was stored; (matrices, `None`) where dense."""

    def scores(self, preconditioned: Tensor, parts: Parts) -> Tensor:
        """Inner products of queries (Q, d1, d2) with the stored gradients: (Q, n)."""
        left, right = self.factors(parts, *preconditioned.shape[1:])
        return dense_scores(preconditioned, left) if right is None else bilinear_scores(preconditioned, left, right)

    def bytes_per_example(self, d1: int, d2: int) -> int:
        """Bytes of one example in one layer."""
        total = 0
        for dtype, shape in self.layout(d1, d2).values():
            numbers = 1
            for extent in shape:
                numbers *= extent
            total += numbers * dtype.itemsize
        return total


@dataclass(frozen=True)
class DenseCodec(Codec):
    """The whole projected gradient, D = d1 d2 numbers, as LoGRA and TRAK store it."""

    dtype: torch.dtype

    def layout(self, d1: int, d2: int) -> Layout:
        return {"g": (self.dtype, (d1, d2))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        assert isinstance(matrices, Tensor)  # a gradient that is stored whole is formed
        return {"g": matrices.to("cpu", self.dtype)}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        return parts["g"], None


@dataclass(frozen=True)
class FactorCodec(Codec):
    """Rank-c factors in a floating-point type: c (d1 + d2) numbers, as LoRIF stores them."""

    rank: int
    dtype: torch.dtype

    def layout(self, d1: int, d2: int) -> Layout:
        return {"u": (self.dtype, (d1, self.rank)), "v": (self.dtype, (d2, self.rank))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        left, right = factorize(matrices, self.rank)
        return {"u": left.to("cpu", self.dtype), "v": right.to("cpu", self.dtype)}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        return parts["u"], parts["v"]


@dataclass(frozen=True)
class PackedCodec(Codec):
    """Rank-c factors at `bits` bits a number, with one scale for each pair of vectors, fitted to the gradient."""

    rank: int
    bits: int

    def layout(self, d1: int, d2: int) -> Layout:
        sides = {
            side: (torch.uint8, (self.rank, packed_bytes(extent, self.bits)))
            for side, extent in (("u", d1), ("v", d2))
        }
        return {**sides, "u_scale": (torch.bfloat16, (self.rank,))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        left, right, scales = quantized_factors(matrices, self.rank, self.bits)
        return {
            "u": pack(left, self.bits).cpu(),
            "v": pack(right, self.bits).cpu(),
            "u_scale": scales.to("cpu", torch.bfloat16),
        }

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        scales = parts["u_scale"].float().unsqueeze(1)
        left, right = (unpack(parts[side], extent, self.bits).mT for side, extent in (("u", d1), ("v", d2)))
        return left * scales, right
