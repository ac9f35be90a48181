"""LoRIF's published way to the Hessian's eigenpairs: a randomised SVD that streams the gradients five times.

The library's own fits are exact or take one pass (see `benchmarks/curvature.py` for what that gains); this is what
they are compared with.
"""

import torch
from torch import Tensor

from lorif_hf.algebra.gradients import StoredGradients, expand, squared_norms
from lorif_hf.algebra.gram import Eigenpairs
from lorif_hf.algebra.sketching import OVERSAMPLE, _accumulate, _chunks, _rows


PASSES = 5  # one covariance product, three power rounds, the projection
BLOCK_NUMBERS = 1 << 22


def randomized_eigenpairs(
    stored: StoredGradients,
    rank: int,
    *,
    oversample: int = OVERSAMPLE,
    passes: int = PASSES,
    seed: int = 0,
    numbers: int = BLOCK_NUMBERS,
) -> Eigenpairs:
    """Top eigenpairs by a randomised SVD that streams the gradients: `passes` of them, two at least.

    Memory: 16 D l + 48 l^2 bytes, l = r + `oversample`, and one block.

    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithm 4.4; LoRIF's published settings are five passes
    (three power rounds) and ten columns oversampled.
    """
    width = min(rank + oversample, stored.dim)
    basis = torch.randn(stored.dim, width, generator=torch.Generator(device="cpu").manual_seed(seed))
    for _ in range(passes - 1):
        image = torch.zeros(stored.dim, width)
        for left, right in stored.factors(_rows(stored, width, numbers)):
            _accumulate(image, left, right, _coordinates(left, right, basis, stored, numbers), stored, numbers)
        basis = torch.linalg.qr(image).Q
    del image
    small, trace = torch.zeros(width, width, dtype=torch.float64), 0.0
    for left, right in stored.factors(_rows(stored, width, numbers)):
        coordinates = _coordinates(left, right, basis, stored, numbers)
        small += coordinates.T @ coordinates
        trace += float(squared_norms(left, right).sum())
    values, rotation = torch.linalg.eigh(small)
    return Eigenpairs(basis @ rotation[:, -rank:].flip(1).float(), values[-rank:].flip(0).clamp_min(0), trace)


def _coordinates(left: Tensor, right: Tensor | None, basis: Tensor, stored: StoredGradients, numbers: int) -> Tensor:
    """vec(G~_i)^T basis: (n, l)."""
    result = torch.zeros(len(left), basis.shape[1])
    for rows, some in _chunks(stored, max(1, numbers // (max(1, len(left)) * stored.d2))):
        result.addmm_(expand(left, right, rows), basis[some])
    return result
