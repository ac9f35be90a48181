"""Gradients that are never formed: a randomised range finder over the tokens of a layer.

A layer's whitened gradient W_in X^T dY W_out is d1 x d2, and forming or whitening it costs more than the backward pass
does. What is stored of it is a few pairs of vectors. So it is met only in products with a few vectors at once, through
its tokens: the whiteners then meet those vectors instead of every token.
"""

import torch
from torch import Tensor

from .devices import widest
from .matrices import LowRankMatrices, unit


_RIDGE = 1e-7  # of the sum of squares: weaker directions cannot be told from rounding in float32
_SHARED = 1e-5  # squared length of a direction, one where it is whole, that is taken for none


class RangeFinder:
    """The strongest directions of a layer's whitened gradients, from its tokens.

    For X (T x d1) and dY (T x d2) of an example, M = W_in^T X^T dY W_out is cut to its projection on the block Krylov
    space (M Omega, M M^T M Omega), each block of width / 2 columns. Where the rank of M is at most `width` (of few
    tokens, say), all of it is found. Each example is treated alone; Omega is fixed.

    Where d1 <= d2, left @ right^T has orthonormal left columns, else right ones; zeros where there are no more.

    Costs 4 width T (d1 + d2) + width (4 d1^2 + 3 d2^2) operations per example, d1 <= d2.

    Args:
        in_whitener (`Tensor` or `None`): W_in, (d1, d1); `None` stands for the identity.
        out_whitener (`Tensor`): W_out, (d2, d2).
        width (`int`): directions in all, even.

    Source: Musco and Musco 2015 (arXiv:1504.05477), algorithm 2, at a depth of one; the squared norms by Hutchinson's
    estimator (Hutchinson 1990) over the columns of Omega, but for those of which all is found.
    """

    def __init__(self, in_whitener: Tensor | None, out_whitener: Tensor, width: int):
        # The side that is whitened less often is the longer one.
        self._turned = in_whitener is not None and len(in_whitener) > len(out_whitener)
        self._short: Tensor | None = in_whitener
        self._long: Tensor = out_whitener
        if in_whitener is not None and self._turned:
            self._short, self._long = out_whitener, in_whitener
        length = len(self._long)
        generator = torch.Generator(device="cpu").manual_seed(0)
        # Orthogonal columns: their mean square estimates a norm better than that of independent ones.
        start = torch.linalg.qr(torch.randn(length, width // 2, generator=generator)).Q
        self._start = (start * length**0.5).T @ self._long.T

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, output_gradients: Tensor) -> LowRankMatrices:
        """(n, T, d1) and (n, T, d2), float32, to the gradients of n examples."""
        device = inputs.device
        self._short = None if self._short is None else self._short.to(device)
        self._long, self._start = self._long.to(device), self._start.to(device)
        if self._turned:
            return self._found(output_gradients, inputs).mT
        return self._found(inputs, output_gradients)

    def _found(self, inputs: Tensor, outputs: Tensor) -> LowRankMatrices:
        # All vectors are rows: a product with few columns takes several times as long as one with few rows.
        long_whitener = self._long
        rows = self._whitened(self._start.expand(len(inputs), -1, -1) @ outputs.mT @ inputs)
        sizes = _squared_sizes(rows)
        squares = sizes / rows.shape[1]
        lefts = _orthonormal(rows, sizes)
        rights = (self._unwhitened(lefts) @ inputs.mT @ outputs) @ long_whitener
        rows = self._whitened(unit(rights @ long_whitener.T, dim=2) @ outputs.mT @ inputs)
        further = _orthonormal(rows - (rows @ lefts.mT) @ lefts, _squared_sizes(rows))
        others = (self._unwhitened(further) @ inputs.mT @ outputs) @ long_whitener
        # A direction that the first block holds only just is in the second too: it must not count twice.
        lefts = torch.cat([lefts, further], dim=1)
        turn = _inverse_root((lefts @ lefts.mT).to(widest(lefts.device)), _SHARED)
        lefts = turn @ lefts
        half = rights.shape[1]
        rights = torch.baddbmm(turn[:, :, :half] @ rights, turn[:, :, half:], others)
        # No more directions were there to be found.
        whole = torch.linalg.vector_norm(lefts, dim=2).amin(dim=1) < 0.5**0.5
        squares = torch.where(whole, _squared_sizes(rights), squares)
        return LowRankMatrices(lefts.mT, rights.mT, squares)

    def _whitened(self, rows: Tensor) -> Tensor:
        """Vectors of the shorter side as it is stored, from those as it is."""
        return rows if self._short is None else rows @ self._short

    def _unwhitened(self, rows: Tensor) -> Tensor:
        """What the shorter side as it is has to be multiplied with, for the product of it whitened with `rows`."""
        return rows if self._short is None else rows @ self._short.T


def _squared_sizes(rows: Tensor) -> Tensor:
    """Sums of the squares of (n, l, d), (n,), float64 where the device has it."""
    return torch.linalg.vector_norm(rows, dim=(1, 2), dtype=widest(rows.device)).square()


def _orthonormal(rows: Tensor, sizes: Tensor) -> Tensor:
    """Rows (n, l, d) made orthonormal; what is rounding of rows whose squares add up to `sizes` (n,) goes to zero."""
    precise = rows.to(widest(rows.device))
    sizes = torch.where(sizes > 0, sizes, 1).view(-1, 1, 1)
    # Two factors: of rows near the smallest numbers their product is none of float32's.
    return (_inverse_root((precise @ precise.mT).div_(sizes), _RIDGE) @ rows).mul_(sizes.rsqrt().to(rows.dtype))


def _inverse_root(grams: Tensor, ridge: float) -> Tensor:
    """The triangle (n, l, l), float32, that makes rows of these inner products orthonormal, counting in the ridge.

    The inner products, in the widest dtype, are overwritten. Rows that are orthonormal already stay as they are;
    directions whose square is below the ridge shrink. In float32 it is no smaller than what is rounding there.
    """
    ridge = max(ridge, grams.shape[1] * torch.finfo(grams.dtype).eps)
    grams.mul_(1 - ridge).diagonal(dim1=1, dim2=2).add_(ridge)
    triangles = torch.linalg.cholesky_ex(grams).L
    identity = torch.eye(triangles.shape[1], dtype=triangles.dtype, device=triangles.device)
    return torch.linalg.solve_triangular(triangles, identity.expand_as(triangles), upper=False).float()
