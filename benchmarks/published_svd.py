"""LoRIF's published way to the Hessian's eigenpairs: a randomised SVD that streams the gradients five times.

The library's own fits are exact or take one pass; `benchmarks/curvature.py` measures them against this.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lorif_hf.algebra.curvature import Curvature
from lorif_hf.algebra.gradients import BLOCK_NUMBERS, StoredGradients, expand, factor_squared_norms


PASSES = 5  # one covariance product, three power rounds, the projection
OVERSAMPLE = 10  # columns beyond the rank


def fit(stored: StoredGradients, rank: int, damping: float, *, passes: int = PASSES) -> Curvature:
    """The curvature of one layer by a randomised SVD.

    Memory: 16 D l + 48 l^2 bytes, l = r + `OVERSAMPLE`, and one block.

    Args:
        stored (`StoredGradients`): gives the factors anew for each pass.
        rank (`int`): r, at most min(N, D).
        damping (`float`): lambda is this times trace / D.
        passes (`int`, *optional*, defaults to 5): over the gradients, two at least.

    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithm 4.4; the numbers of passes and columns and the
    damping rule are LoRIF's (arXiv:2601.21929).
    """
    width = min(rank + OVERSAMPLE, stored.dim)
    basis = torch.randn(stored.dim, width, generator=torch.Generator(device="cpu").manual_seed(0))
    for _ in range(passes - 1):
        image = torch.zeros(stored.dim, width)
        for left, right in _blocks(stored, width):
            coordinates = _coordinates(left, right, basis)
            for rows, columns in _slices(left, right):
                image[columns].addmm_(expand(left, right, rows).T, coordinates)
        basis = torch.linalg.qr(image).Q
    del image
    small, trace = torch.zeros(width, width, dtype=torch.float64), 0.0
    for left, right in _blocks(stored, width):
        coordinates = _coordinates(left, right, basis)
        small += coordinates.T @ coordinates
        trace += float(factor_squared_norms(left, right).sum())
    eigenvalues, rotation = torch.linalg.eigh(small)
    eigenvalues, rotation = eigenvalues[-rank:].flip(0).clamp_min(0), rotation[:, -rank:].flip(1)
    return Curvature(basis @ rotation.float(), eigenvalues.float(), damping * trace / stored.dim, trace)


def _blocks(stored: StoredGradients, width: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """One pass, in blocks of many examples: long sums, so that little of the image is rewritten."""
    return stored.factors(max(1, BLOCK_NUMBERS // max(2 * width, stored.size)))


def _coordinates(left: Tensor, right: Tensor | None, basis: Tensor) -> Tensor:
    """vec(G~_i)^T basis: (n, l)."""
    coordinates = torch.zeros(len(left), basis.shape[1])
    for rows, columns in _slices(left, right):
        coordinates.addmm_(expand(left, right, rows), basis[columns])
    return coordinates


def _slices(left: Tensor, right: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """Rows of a block's gradients that are expanded together, and where they lie in the flattened ones."""
    d1, d2 = left.shape[1], left.shape[2] if right is None else right.shape[1]
    step = max(1, BLOCK_NUMBERS // (len(left) * d2))
    for start in range(0, d1, step):
        stop = min(start + step, d1)
        yield slice(start, stop), slice(start * d2, stop * d2)
