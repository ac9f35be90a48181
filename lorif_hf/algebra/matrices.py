"""A batch of gradient matrices: dense, or known as a product of two thin ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .devices import widest


@dataclass(frozen=True)
class LowRankMatrices:
    """A batch of matrices known as left @ right^T. It multiplies vectors as a dense batch (n, d1, d2) would.

    Args:
        left (`Tensor`): float32 (n, d1, l).
        right (`Tensor`): float32 (n, d2, l).
        squares (`Tensor`): (n,), float64 where the device has it, the squared Frobenius norm of each whole matrix, of
            which left @ right^T is a part: an unbiased estimate, exact where that part is all.
    """

    left: Tensor
    right: Tensor
    squares: Tensor

    @classmethod
    def cat(cls, batches: "list[LowRankMatrices]") -> "LowRankMatrices":
        """Several batches of one shape as one."""
        # Each vector is one run of memory, and stays one.
        left, right = (
            torch.cat([side.mT for side in sides]).mT
            for sides in zip(*((matrices.left, matrices.right) for matrices in batches), strict=True)
        )
        return cls(left, right, torch.cat([matrices.squares for matrices in batches]))

    @classmethod
    def product(cls, left: Tensor, right: Tensor) -> "LowRankMatrices":
        """Matrices that are the product of (n, d1, l) and (n, d2, l), and no more."""
        squares = ((left.mT @ left) * (right.mT @ right)).sum(dim=(1, 2)).to(widest(left.device)).clamp_min(0)
        return cls(left, right, squares)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.left), self.left.shape[1], self.right.shape[1]

    @property
    def mT(self) -> "LowRankMatrices":
        return LowRankMatrices(self.right, self.left, self.squares)

    def __len__(self) -> int:
        return len(self.left)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return (vectors.mT @ self.right @ self.left.mT).mT

    def __truediv__(self, sizes: Tensor) -> "LowRankMatrices":
        """Each matrix over its own number, (n, 1, 1)."""
        root = sizes.sqrt()  # of each side as much, since either may carry the scale
        flat = sizes.flatten().to(self.squares.dtype)
        return LowRankMatrices(self.left / root, self.right / root, self.squares / flat / flat)


Matrices = Tensor | LowRankMatrices
"""Gradient matrices of a batch: dense (n, d1, d2), or known by their products."""

Reduction = Callable[[Tensor, Tensor], Matrices]
"""Makes a layer's gradients of its tokens: float32 (n, T, d1) and (n, T, d2), projected, to n matrices d1 x d2."""


def in_order(batches: Sequence[Matrices], order: Tensor) -> Matrices:
    """Matrices of several batches of one shape, all of them: the k-th is number `order[k]` of all as they come."""
    widths = {batch.left.shape[2] if isinstance(batch, LowRankMatrices) else None for batch in batches}
    if widths != {None} and len(widths) == 1:
        whole = LowRankMatrices.cat(cast(list[LowRankMatrices], list(batches)))
        order = order.to(whole.left.device)
        left, right = (side.mT[order].mT for side in (whole.left, whole.right))
        return LowRankMatrices(left, right, whole.squares[order.to(whole.squares.device)])
    formed = torch.cat([dense(batch) for batch in batches])
    return formed[order.to(formed.device)]


def weighted_sums(matrices: Matrices, weights: Tensor) -> Matrices:
    """Sums of n matrices by weights (q, n): q matrices.

    Of low-rank ones that are whole, products again where each sum has as many terms, next to each other and in order,
    and they are no more numbers than the matrices.
    """
    if not isinstance(matrices, LowRankMatrices):
        return torch.einsum("qb,bij->qij", weights.to(matrices), matrices)
    count, d1, d2 = matrices.shape
    sums, (terms, rest) = len(weights), divmod(count, max(1, len(weights)))
    own = torch.eye(sums, dtype=torch.bool).repeat_interleave(max(1, terms), dim=1)
    length = terms * matrices.left.shape[2]
    if rest or not terms or bool((weights.cpu()[:, : own.shape[1]][~own] != 0).any()) or length * (d1 + d2) > d1 * d2:
        return weighted_sums(dense(matrices), weights)
    scaled = matrices.left * weights.sum(dim=0).to(matrices.left).view(-1, 1, 1)
    # (q terms, d, l) to (q, d, terms l)
    left, right = (side.mT.reshape(sums, length, side.shape[1]).mT for side in (scaled, matrices.right))
    return LowRankMatrices.product(left, right)


def dense(matrices: Matrices) -> Tensor:
    """The matrices whole, (n, d1, d2)."""
    return matrices.left @ matrices.right.mT if isinstance(matrices, LowRankMatrices) else matrices


def squared_norms(matrices: Matrices) -> Tensor:
    """Squared Frobenius norm of each whole matrix, (n,), float64 where the device has it; of low-rank ones the
    estimate that they carry."""
    if isinstance(matrices, LowRankMatrices):
        return matrices.squares
    return matrices.flatten(1).square().sum(dim=1).to(widest(matrices.device))


def matrix_sizes(matrices: Matrices) -> Tensor:
    """A positive number about as large as each matrix, (n, 1, 1); 1 for one that is zero."""
    if isinstance(matrices, LowRankMatrices):
        sizes = matrices.squares.sqrt().to(matrices.left.dtype).view(-1, 1, 1)
    else:
        sizes = matrices.abs().amax(dim=(1, 2), keepdim=True) if len(matrices) else matrices.new_ones(0, 1, 1)
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def unit(vectors: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Vectors (or matrices) along `dim` at length one; zero stays zero."""
    return vectors / vectors.norm(dim=dim, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
