"""Gradients that are never formed: a randomised range finder over the tokens of a layer.

A layer's whitened gradient W_in X^T dY W_out is d1 x d2, and forming or whitening it costs more than the backward pass
does. What is stored of it is a few pairs of vectors. So it is met only in products with a few vectors at once, through
its tokens: the whiteners then meet those vectors instead of every token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


_RIDGE = 3e-6  # of a Gram matrix's trace: rounding leaves as much of directions that are not there


@dataclass(frozen=True)
class LowRankMatrices:
    """A batch of matrices known as left @ right^T. It multiplies vectors as a dense batch (n, d1, d2) would.

    Args:
        left (`Tensor`): float32 (n, d1, l).
        right (`Tensor`): float32 (n, d2, l).
        squares (`Tensor`): float64 (n,), the squared Frobenius norm of each whole matrix, of which left @ right^T is
            the greater part: an unbiased estimate.
    """

    left: Tensor
    right: Tensor
    squares: Tensor

    @classmethod
    def cat(cls, batches: "list[LowRankMatrices]") -> "LowRankMatrices":
        """Several batches of one shape as one."""
        return cls(
            *(torch.cat(parts) for parts in zip(*((one.left, one.right, one.squares) for one in batches), strict=True))
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.left), self.left.shape[1], self.right.shape[1]

    @property
    def mT(self) -> "LowRankMatrices":
        return LowRankMatrices(self.right, self.left, self.squares)

    def __len__(self) -> int:
        return len(self.left)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.left @ (self.right.mT @ vectors)

    def __truediv__(self, sizes: Tensor) -> "LowRankMatrices":
        """Each matrix over its own number, (n, 1, 1)."""
        return LowRankMatrices(self.left, self.right / sizes, self.squares / sizes.flatten().double().square())


Matrices = Tensor | LowRankMatrices
"""Gradient matrices of a batch: dense (n, d1, d2), or known by their products."""


def dense(matrices: Matrices) -> Tensor:
    """The matrices whole, (n, d1, d2)."""
    return matrices.left @ matrices.right.mT if isinstance(matrices, LowRankMatrices) else matrices


def squared_norms(matrices: Matrices) -> Tensor:
    """Squared Frobenius norm of each whole matrix, float64 (n,); of low-rank ones the estimate that they carry."""
    if isinstance(matrices, LowRankMatrices):
        return matrices.squares
    return matrices.flatten(1).square().sum(dim=1).double()


def matrix_sizes(matrices: Matrices) -> Tensor:
    """A positive number about as large as each matrix, (n, 1, 1); 1 for one that is zero."""
    numbers = matrices.right if isinstance(matrices, LowRankMatrices) else matrices
    sizes = numbers.abs().amax(dim=(1, 2), keepdim=True) if len(numbers) else numbers.new_ones(0, 1, 1)
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes))


class RangeFinder:
    """The strongest directions of a layer's whitened gradients, from its tokens.

    For X (T x d1) and dY (T x d2) of an example, M = W_in X^T dY W_out is cut to left @ right^T with orthonormal left
    columns: the range of M Omega, after `rounds` more products with M^T and M. Exact where the rank of M (the number
    of tokens, say) is at most `width`. Each example is treated alone, and Omega is fixed.

    Costs 4 (1 + rounds) width T (d1 + d2) + 2 width ((2 + rounds) d1^2 + (1 + rounds) d2^2) operations per example.

    Args:
        in_whitener (`Tensor`): W_in, symmetric (d1, d1).
        out_whitener (`Tensor`): W_out, symmetric (d2, d2).
        width (`int`): l, columns of Omega.
        rounds (`int`, *optional*, defaults to 1): power rounds.

    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithm 4.4; the squared norms by Hutchinson's estimator
    (Hutchinson 1990) over the columns of Omega.
    """

    def __init__(self, in_whitener: Tensor, out_whitener: Tensor, width: int, rounds: int = 1):
        generator = torch.Generator(device="cpu").manual_seed(0)
        # Orthogonal columns: their mean square estimates a norm better than that of independent ones.
        start = torch.linalg.qr(torch.randn(len(out_whitener), width, generator=generator)).Q
        self._start = out_whitener @ (start * len(out_whitener) ** 0.5)
        self._sides = in_whitener, out_whitener
        self._squared = in_whitener @ in_whitener, out_whitener @ out_whitener
        self.rounds = rounds

    def _move(self, device: torch.device) -> None:
        self._start = self._start.to(device)
        self._sides = self._sides[0].to(device), self._sides[1].to(device)
        self._squared = self._squared[0].to(device), self._squared[1].to(device)

    def __call__(self, inputs: Tensor, output_gradients: Tensor) -> LowRankMatrices:
        """(n, T, d1) and (n, T, d2), float32, to the gradients of n examples."""
        if self._start.device != inputs.device:
            self._move(inputs.device)
        images = output_gradients @ self._start
        rows, twice, grams = _orthonormal_range(images, inputs, self._squared[0])
        squares = grams.diagonal(dim1=1, dim2=2).mean(dim=1)
        for _ in range(self.rounds):
            _, twice, _ = _orthonormal_range(inputs @ twice.mT, output_gradients, self._squared[1])
            rows, twice, _ = _orthonormal_range(output_gradients @ twice.mT, inputs, self._squared[0])
        others = (inputs @ twice.mT).mT @ output_gradients
        return LowRankMatrices((rows @ self._sides[0]).mT, (others @ self._sides[1]).mT, squares)


def _orthonormal_range(images: Tensor, tokens: Tensor, squared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors that span images^T tokens and are orthonormal once they are whitened.

    They are kept as rows and unwhitened: inner products need one side whitened twice, which is also what the next
    product with the gradient takes. So each product costs one with a whitener.

    Args:
        images (`Tensor`): (n, T, l).
        tokens (`Tensor`): (n, T, d).
        squared (`Tensor`): (d, d), the whitener times itself.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: the rows (n, l, d), the same whitened twice, and the inner products of the
        whitened images before they were made orthonormal, float64 (n, l, l).
    """
    rows = images.mT @ tokens
    twice = rows @ squared
    grams = rows.double() @ twice.mT.double()
    grams = (grams + grams.mT) / 2
    ridge = _RIDGE * grams.diagonal(dim1=1, dim2=2).sum(dim=1)
    damped = grams.clone()
    damped.diagonal(dim1=1, dim2=2).add_(torch.where(ridge > 0, ridge, 1).unsqueeze(1))
    triangles = torch.linalg.cholesky_ex(damped).L
    identity = torch.eye(triangles.shape[1], dtype=triangles.dtype, device=triangles.device)
    inverse = torch.linalg.solve_triangular(triangles, identity.expand_as(triangles), upper=False).to(rows.dtype)
    return inverse @ rows, inverse @ twice, grams
