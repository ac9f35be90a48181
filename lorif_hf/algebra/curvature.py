"""The low-rank Hessian of one layer and its inverse.

H = sum_i vec(G~_i) vec(G~_i)^T + lambda I, of which the top r eigenpairs of the sum are kept. All solvers see the
stored (rank-c) gradients, so that they agree with one another and a build that resumes needs nothing but its shards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import reconstruct


EXACT_LIMIT = 4096  # largest D (or N) whose Gram matrix is formed and decomposed: 128 MiB in float64
_BLOCK_NUMBERS = 1 << 23  # numbers per reconstructed block of gradients: 32 MiB of float32
_LEAST_DAMPING = 1e-30

FactorBlocks = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]
"""Called once per pass, gives blocks of rows in order: (n, d1, c) and (n, d2, c), or dense (n, d1, d2) and `None`."""


@dataclass(frozen=True)
class Curvature:
    """What the inverse Hessian of one layer needs.

    Args:
        eigenvectors (`Tensor`): V_r, float32 (D, r), orthonormal columns.
        eigenvalues (`Tensor`): s^2, float32 (r,), descending: eigenvalues of the undamped sum.
        damping (`float`): lambda, in the eigenvalues' unit.
        trace (`float`): trace of the undamped sum.
    """

    eigenvectors: Tensor
    eigenvalues: Tensor
    damping: float
    trace: float


def fit(blocks: FactorBlocks, *, count: int, dim: int, rank: int | None, damping: float) -> Curvature:
    """Fit the curvature of one layer to its stored factors.

    Exact where D or N is at most 4096 (the smaller of the two Gram matrices), else a randomised SVD that streams the
    blocks. r is capped at min(N, D).

    Args:
        blocks (`FactorBlocks`): gives the factors anew for each pass.
        count (`int`): N, rows in all blocks together.
        dim (`int`): D = d1 d2.
        rank (`int` or `None`): r; `None` keeps every direction.
        damping (`float`): lambda is this times trace / D.

    Source: LoRIF (arXiv:2601.21929), section 3.2; the damping rule is the authors' released one.
    """
    rank = min(rank or dim, dim, count)
    if min(dim, count) > EXACT_LIMIT:
        eigenvectors, eigenvalues, trace = randomized_eigenpairs(blocks, dim=dim, rank=rank)
    elif dim <= count:
        eigenvectors, eigenvalues, trace = gram_eigenpairs(blocks, dim=dim, rank=rank)
    else:
        eigenvectors, eigenvalues, trace = dual_eigenpairs(blocks, count=count, dim=dim, rank=rank)
    # A layer without any gradient has no scale of its own: lambda = 1 leaves its scores at zero. So does one whose
    # squares are too small for float32.
    strength = damping * trace / dim
    strength = strength if strength > _LEAST_DAMPING else 1.0
    return Curvature(eigenvectors.float(), eigenvalues.float(), strength, trace)


def gram_eigenpairs(blocks: FactorBlocks, *, dim: int, rank: int) -> tuple[Tensor, Tensor, float]:
    """Top eigenpairs from the D x D Gram matrix, one pass. Returns (D, r), (r,), trace."""
    gram, trace = torch.zeros(dim, dim, dtype=torch.float64), 0.0
    for gradients in _gradient_blocks(blocks, dim):
        gram += gradients.T @ gradients
        trace += float(gradients.double().square().sum())
    eigenvalues, eigenvectors = _top_eigenpairs(gram, rank)
    return eigenvectors, eigenvalues, trace


def dual_eigenpairs(blocks: FactorBlocks, *, count: int, dim: int, rank: int) -> tuple[Tensor, Tensor, float]:
    """Top eigenpairs from the N x N matrix of inner products, where N < D. Returns (D, r), (r,), trace.

    With K = G G^T = W S^2 W^T the eigenvectors of G^T G are G^T W / S. Directions whose eigenvalue is rounding noise
    are left out, so r may come out smaller: they are worth nothing and could not be normalised.
    """
    pairs = list(blocks())
    left = torch.cat([pair[0] for pair in pairs]).double()
    if pairs[0][1] is None:
        kernel = left.flatten(1) @ left.flatten(1).T
    else:
        right = torch.cat([pair[1] for pair in pairs if pair[1] is not None]).double()
        kernel = torch.zeros(count, count, dtype=torch.float64)
        for a in range(left.shape[2]):
            for b in range(left.shape[2]):
                kernel += (left[:, :, a] @ left[:, :, b].T) * (right[:, :, a] @ right[:, :, b].T)
    trace = float(kernel.diagonal().sum())
    eigenvalues, vectors = _top_eigenpairs(kernel, rank)
    keep = eigenvalues > 1e-10 * eigenvalues[:1].clamp_min(torch.finfo(torch.float64).tiny)
    eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
    eigenvectors, start = torch.zeros(dim, len(eigenvalues), dtype=torch.float64), 0
    for gradients in _gradient_blocks(blocks, dim):
        eigenvectors += gradients.double().T @ vectors[start : start + len(gradients)]
        start += len(gradients)
    return eigenvectors / eigenvalues.sqrt(), eigenvalues, trace


def randomized_eigenpairs(
    blocks: FactorBlocks, *, dim: int, rank: int, oversample: int = 10, power_rounds: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """Top eigenpairs by a randomised SVD that streams the blocks: 2 + `power_rounds` passes, O(D r) memory.

    Returns (D, r), (r,), trace.

    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithm 4.4, with LoRIF's published settings.
    """
    width = min(rank + oversample, dim)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    basis = torch.randn(dim, width, generator=generator)
    for _ in range(1 + power_rounds):
        image = torch.zeros(dim, width)
        for gradients in _gradient_blocks(blocks, dim):
            image += gradients.T @ (gradients @ basis)
        basis = torch.linalg.qr(image).Q
    small, trace = torch.zeros(width, width, dtype=torch.float64), 0.0
    for gradients in _gradient_blocks(blocks, dim):
        coordinates = gradients @ basis
        small += coordinates.T @ coordinates
        trace += float(gradients.double().square().sum())
    eigenvalues, rotation = _top_eigenpairs(small, rank)
    return basis.double() @ rotation, eigenvalues, trace


def woodbury_solve(gradients: Tensor, eigenvectors: Tensor, eigenvalues: Tensor, damping: float) -> Tensor:
    """H^-1 g = (1 / lambda) [g - V_r diag(s^2 / (s^2 + lambda)) V_r^T g].

    Args:
        gradients (`Tensor`): (Q, D), flattened row by row.
        eigenvectors (`Tensor`): V_r, (D, r).
        eigenvalues (`Tensor`): s^2, (r,).
        damping (`float`): lambda > 0.

    Returns:
        `Tensor`: (Q, D).

    Source: LoRIF (arXiv:2601.21929), section 3.2 (the Woodbury identity with a truncated SVD).
    """
    coordinates = gradients @ eigenvectors
    outside = gradients - coordinates @ eigenvectors.T
    # Twice, for what rounding leaves inside the kept space would be divided by lambda, which may be far below s^2.
    outside = outside - (outside @ eigenvectors) @ eigenvectors.T
    return (coordinates / (eigenvalues + damping)) @ eigenvectors.T + outside / damping


def spectral_solve(gradients: Tensor, eigenvectors: Tensor, eigenvalues: Tensor, damping: float) -> Tensor:
    """V_r diag(1 / (s^2 + lambda)) V_r^T g: H^-1 g where every direction of the stored gradients is kept.

    What a query has outside of them meets no stored gradient. [`woodbury_solve`] keeps it, at the weight 1 / lambda:
    for a small lambda nothing but rounding noise would come of it.

    Args and returns as in [`woodbury_solve`].
    """
    return ((gradients @ eigenvectors) / (eigenvalues + damping)) @ eigenvectors.T


def self_influence(left: Tensor, right: Tensor | None, curvature: Curvature) -> Tensor:
    """vec(G~_i)^T H^-1 vec(G~_i) of stored examples: (n, d1, c), (n, d2, c) -> (n,), never negative."""
    result, start = torch.zeros(len(left)), 0
    for gradients in _gradient_blocks(lambda: iter([(left, right)]), len(curvature.eigenvectors)):
        rows = slice(start, start + len(gradients))
        start = rows.stop
        coordinates = gradients @ curvature.eigenvectors
        # Inside the kept space and outside of it apart: the two parts of |g|^2 would cancel in float32.
        outside = gradients - coordinates @ curvature.eigenvectors.T
        result[rows] = outside.square().sum(dim=1) / curvature.damping
        result[rows] += (coordinates.square() / (curvature.eigenvalues + curvature.damping)).sum(dim=1)
    return result


def _gradient_blocks(blocks: FactorBlocks, dim: int) -> Iterator[Tensor]:
    """The stored gradients as float32 (n, D) blocks of bounded size."""
    step = max(1, _BLOCK_NUMBERS // dim)
    for left, right in blocks():
        for start in range(0, len(left), step):
            rows = slice(start, start + step)
            yield reconstruct(left[rows].float(), None if right is None else right[rows].float()).flatten(1)


def _top_eigenpairs(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` largest eigenvalues (descending, not below zero) and their eigenvectors."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return eigenvalues.flip(0)[:rank].clamp_min(0), eigenvectors.flip(1)[:, :rank]
