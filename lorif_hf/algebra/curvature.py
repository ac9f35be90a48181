"""The low-rank Hessian of one layer and its inverse.

H = sum_i vec(G~_i) vec(G~_i)^T + lambda I, of which the top r eigenpairs of the sum are kept. All solvers see the
stored (rank-c) gradients, so that they agree with one another and a build that resumes needs nothing but its shards.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .gradients import BLOCK_NUMBERS, StoredGradients, expand, factor_squared_norms
from .gram import Eigenpairs, dual_eigenpairs, gram_eigenpairs
from .planning import Plan
from .sketching import nystroem_eigenpairs


_LEAST_DAMPING = 1e-30
_CANCELLED = 1e-2  # share of |g|^2 below which what is outside the kept space is not taken as a difference of squares


@dataclass(frozen=True)
class Curvature:
    """What the inverse Hessian of one layer needs.

    Args:
        eigenvectors (`Tensor`): V_r, float32 (D, r), orthonormal columns.
        eigenvalues (`Tensor`): s^2, float32 (r,), descending: eigenvalues of the undamped sum.
        damping (`float`): lambda, in the eigenvalues' unit.
        trace (`float`): trace of the undamped sum.
        self_influence (`Tensor`, *optional*): of the rows it was fitted to, float32 (N,), where it came for nothing.
    """

    eigenvectors: Tensor
    eigenvalues: Tensor
    damping: float
    trace: float
    self_influence: Tensor | None = None

    @cached_property
    def inverse_root(self) -> Tensor:
        """H^-1/2, float32 (D, D)."""
        scales = (self.eigenvalues.double() + self.damping).rsqrt() - self.damping**-0.5
        root = (self.eigenvectors * scales.float()) @ self.eigenvectors.T
        root.diagonal().add_(self.damping**-0.5)
        return root


def fit(stored: StoredGradients, plan: Plan, *, damping: float) -> Curvature:
    """Fit the curvature of one layer to its stored factors, as [`~lorif_hf.algebra.planning.plan_fit`] chose.

    Args:
        stored (`StoredGradients`): gives the factors anew for each pass.
        plan (`Plan`): the method, its rank, width and block.
        damping (`float`): lambda is this times trace / D.

    Source: LoRIF (arXiv:2601.21929), section 3.2; the damping rule is the authors' released one.
    """
    eigenpairs = _eigenpairs(stored, plan)
    # A layer without any gradient has no scale of its own: lambda = 1 leaves its scores at zero. So does one whose
    # squares are too small for float32.
    strength = damping * eigenpairs.trace / stored.dim
    strength = strength if strength > _LEAST_DAMPING else 1.0
    influence = None
    if eigenpairs.row_squares is not None and eigenpairs.row_norms is not None:
        outside = (eigenpairs.row_norms - eigenpairs.row_squares.sum(dim=1)).clamp_min(0)
        influence = (eigenpairs.row_squares @ (eigenpairs.values + strength).reciprocal() + outside / strength).float()
    return Curvature(eigenpairs.vectors, eigenpairs.values.float(), strength, eigenpairs.trace, influence)


def _eigenpairs(stored: StoredGradients, plan: Plan) -> Eigenpairs:
    if plan.method == "gram":
        return gram_eigenpairs(stored, plan.rank, plan.block)
    if plan.method == "dual":
        return dual_eigenpairs(stored, plan.rank, plan.block)
    return nystroem_eigenpairs(stored, plan.rank, plan.width, block_size=plan.block)


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


def self_influence(
    left: Tensor, right: Tensor | None, curvature: Curvature, block_size: int = BLOCK_NUMBERS
) -> Tensor:
    """vec(G~_i)^T H^-1 vec(G~_i) of stored examples: (n, d1, c), (n, d2, c) -> (n,), never negative.

    One product of D^2 or D r operations a row, whichever is less, and a second one of D r only for rows that lie
    almost wholly inside the kept space.

    Memory: 4 D^2 bytes where 2 r > D; one block of `block_size` numbers.
    """
    vectors, damping, result = curvature.eigenvectors, curvature.damping, torch.zeros(len(left))
    dim, rank = vectors.shape
    step = max(1, block_size // (2 * dim))
    for start in range(0, len(left), step):
        rows = slice(start, start + step)
        u, v = left[rows].float(), None if right is None else right[rows].float()
        gradients = expand(u, v)
        if 2 * rank > dim:
            result[rows] = (gradients @ curvature.inverse_root).square().sum(dim=1)
            continue
        coordinates = gradients @ vectors
        norms = factor_squared_norms(u, v)
        outside = norms - coordinates.double().square().sum(dim=1)
        # There the two parts of |g|^2 would cancel in float32.
        again = outside < _CANCELLED * norms
        if bool(again.any()):
            residual = gradients[again] - coordinates[again] @ vectors.T
            outside[again] = residual.double().square().sum(dim=1)
        result[rows] = outside.float() / damping
        result[rows] += (coordinates.square() / (curvature.eigenvalues + damping)).sum(dim=1)
    return result
