"""How gradients are stored: dense, as rank-c factors, or as factors at a few bits a number.

A codec turns a batch of gradient matrices (n, d1, d2) into named tensors with the examples along their first axis
("parts"), and scores parts against preconditioned queries.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.factors import factorize
from ..algebra.matrices import Matrices
from ..algebra.quantization import look_up, pack, packed_bytes, quantized_factors, unpack
from ..algebra.scoring import DENSE_ROWS, ROWS, QueryGroup, Workspace, add_scores, rows_per_block


Parts = Mapping[str, Tensor]
"""The stored tensors of one layer and some examples, by name."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Of each part: its dtype and the shape of one example's share."""


_VANISHING = 1e-17  # above the norm of a vector whose squares are all lost to float32's smallest number
_NORM_ROWS = 1 << 19  # numbers in the float64 temporaries of the norms


class Codec(ABC):
    """One way to store gradients.

    Attributes:
        pairs (`int` or `None`): c, pairs of vectors stored of a gradient; `None`: it is stored whole.
    """

    pairs: int | None

    @abstractmethod
    def layout(self, d1: int, d2: int) -> Layout:
        """The parts of a layer whose projected gradients are d1 x d2."""

    @abstractmethod
    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        """Gradients (n, d1, d2), float32, to parts on the CPU. Each example is encoded alone."""

    @abstractmethod
    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        """left (n, d1, c) and right (n, d2, c), whose product is what was stored; (matrices, `None`) where dense."""

    @abstractmethod
    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Some rows' numbers in float32: left (n, c, d1), right (n, c, d2) and the pairs' scales (n, c), if any.

        Of gradients stored whole: (n, d1, d2) and twice `None`. Rows of any numbers fill n up to a multiple of `ROWS`
        (`DENSE_ROWS`), so that equal examples get equal scores wherever they stand. Valid until the workspace is used
        again.
        """

    def scores(self, preconditioned: Tensor, parts: Parts) -> Tensor:
        """Inner products of queries (Q, d1, d2), float32, with the stored gradients: (Q, n)."""
        queries, d1, d2 = preconditioned.shape
        scores = torch.zeros(queries, len(next(iter(parts.values()))))
        self.add_scores(scores, [QueryGroup(torch.arange(queries), preconditioned)], parts, d1, d2, Workspace())
        return scores

    def add_scores(
        self,
        scores: Tensor,
        groups: Sequence[QueryGroup],
        parts: Parts,
        d1: int,
        d2: int,
        workspace: Workspace,
        sizes: Tensor | None = None,
        first: int = 0,
    ) -> None:
        """Add one layer's inner products to the scores (Q, n), float32, block by block.

        Args:
            sizes (`Tensor`, *optional*): (n,), set to the sum over pairs of |u| |v|: no product with a matrix of
                spectral norm b is above b times it. Only of factors.
            first (`int`, *optional*, defaults to 0): the row of the parts that the first score is of.
        """
        count, step = scores.shape[1], rows_per_block(self.pairs, d1, d2)
        for start in range(0, count, step):
            stop = min(start + step, count)
            left, right, scales = self.unpacked(parts, slice(first + start, first + stop), d1, d2, workspace)
            for group in groups:
                add_scores(scores if step >= count else scores[:, start:stop], group, left, right, scales, workspace)
            if sizes is not None:
                assert right is not None
                sizes[start:stop] = self._sizes(left, right, scales)[: stop - start]

    def _sizes(self, left: Tensor, right: Tensor, scales: Tensor | None) -> Tensor:
        sizes = (left.norm(dim=2) + _VANISHING) * (right.norm(dim=2) + _VANISHING)
        return (sizes if scales is None else sizes * scales.abs()).sum(dim=1)

    def norms(self, parts: Parts, d1: int, d2: int) -> Tensor:
        """Frobenius norms of the stored gradients, float64 (n,), not below the exact ones."""
        count = len(next(iter(parts.values())))
        squares = torch.zeros(count, dtype=torch.float64)
        step = max(1, _NORM_ROWS // (d1 * d2 if self.pairs is None else self.pairs * (d1 + d2)))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            left, right = self.factors({name: part[rows] for name, part in parts.items()}, d1, d2)
            left = left.double()
            if right is None:
                squares[rows] = left.square().sum(dim=(1, 2))
                continue
            grams = (left.mT @ left) * (right.double().mT @ right.double())
            # Where pairs cancel, rounding of what cancels stays.
            squares[rows] = grams.sum(dim=(1, 2)).clamp_min(0) + 1e-13 * grams.abs().sum(dim=(1, 2))
        return squares.sqrt() * (1 + 1e-9)

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
    pairs = None

    def layout(self, d1: int, d2: int) -> Layout:
        return {"g": (self.dtype, (d1, d2))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        assert isinstance(matrices, Tensor)  # a gradient that is stored whole is formed
        return {"g": matrices.to("cpu", self.dtype)}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        return parts["g"], None

    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _widened(parts["g"][rows], "left", workspace, DENSE_ROWS), None, None


@dataclass(frozen=True)
class FactorCodec(Codec):
    """Rank-c factors in a floating-point type: c (d1 + d2) numbers, as LoRIF stores them.

    Each vector's numbers stand side by side: turning them at every query would take longer than scoring them.
    """

    rank: int
    dtype: torch.dtype

    @property
    def pairs(self) -> int:  # type: ignore[override]
        return self.rank

    def layout(self, d1: int, d2: int) -> Layout:
        return {"u": (self.dtype, (self.rank, d1)), "v": (self.dtype, (self.rank, d2))}

    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        left, right = factorize(matrices, self.rank)
        return {name: side.mT.to("cpu", self.dtype).contiguous() for name, side in (("u", left), ("v", right))}

    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        return parts["u"].mT, parts["v"].mT

    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _widened(parts["u"][rows], "left", workspace), _widened(parts["v"][rows], "right", workspace), None


@dataclass(frozen=True)
class PackedCodec(Codec):
    """Rank-c factors at `bits` bits a number, with one scale for each pair of vectors, fitted to the gradient."""

    rank: int
    bits: int

    @property
    def pairs(self) -> int:  # type: ignore[override]
        return self.rank

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

    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        sides = []
        for side, extent, name in (("u", d1, "left"), ("v", d2, "right")):
            packed = parts[side].numpy()[rows]
            count, rank, size = packed.shape
            numbers = workspace.take(name, _filled(count), rank, size * 8 // self.bits)
            look_up(packed, self.bits, numbers.numpy()[:count])
            sides.append(numbers if extent == numbers.shape[2] else numbers[:, :, :extent])
        return sides[0], sides[1], _widened(parts["u_scale"][rows], "scales", workspace)

    def _sizes(self, left: Tensor, right: Tensor, scales: Tensor | None) -> Tensor:
        assert scales is not None
        if self.bits == 1:  # every number is 1 or -1
            return scales.abs().sum(dim=1) * math.sqrt(left.shape[2] * right.shape[2])
        return super()._sizes(left, right, scales)


def _widened(part: Tensor, name: str, workspace: Workspace, rows: int = ROWS) -> Tensor:
    count = part.shape[0]
    wide = workspace.take(name, _filled(count, rows), *part.shape[1:])
    wide[:count].copy_(part)
    return wide


def _filled(count: int, rows: int = ROWS) -> int:
    return -(-count // rows) * rows
