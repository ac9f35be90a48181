"""Eigenpairs from a matrix that is formed: the D x D Gram matrix of the gradients, or the N x N one of the rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .gradients import BLOCK_NUMBERS, StoredGradients, expand


POWER_ROUNDS = 5  # of the iteration on a matrix in memory, after its first product: two more than the published one's
_PANELS = 4  # of the symmetric products: 5/8 of the operations
_WEAK = (
    1e-4  # eigenvalues below this times the mean squared norm: float32 would not leave their directions four digits
)
_NOISE = 1e-10  # of the largest eigenvalue


@dataclass(frozen=True)
class Eigenpairs:
    """Top eigenpairs of sum_i vec(G~_i) vec(G~_i)^T.

    Args:
        vectors (`Tensor`): V_r, float32 (D, r).
        values (`Tensor`): s^2, float64 (r,), descending.
        trace (`float`): of the whole sum.
        row_squares (`Tensor`, *optional*): (V_r^T vec(G~_i))^2, float64 (N, r), where they came for nothing.
        row_norms (`Tensor`, *optional*): |G~_i|^2, float64 (N,), beside them.
    """

    vectors: Tensor
    values: Tensor
    trace: float
    row_squares: Tensor | None = None
    row_norms: Tensor | None = None


def iterates(size: int, rank: int) -> bool:
    """Whether the top of a matrix of this size is iterated for, not taken from its whole decomposition."""
    return size > 1024 and 4 * rank < size


def iteration_width(size: int, rank: int) -> int:
    """Columns of that iteration."""
    return min(size, rank + max(10, rank // 8))


def folds(stored: StoredGradients) -> bool:
    """Whether [`gram_eigenpairs`] accumulates the pairs of factor entries instead of the expanded gradients."""
    d1, d2 = stored.d1, stored.d2
    return stored.factor_rank == 1 and (d1 * (d1 + 1) + d2 * (d2 + 1)) // 2 <= 2 * stored.dim


def gram_eigenpairs(stored: StoredGradients, rank: int, block_size: int = BLOCK_NUMBERS) -> Eigenpairs:
    """Top eigenpairs from the exact D x D Gram matrix, one pass.

    At c = 1 the Gram matrix is sum_i (u_i u_i^T) (x) (v_i v_i^T), whose two sides are symmetric: N D^2 / 2 operations
    for products of the d (d + 1) / 2 pairs of entries of each, instead of 2 N D^2.

    Memory: 32 D^2 bytes (float64: the matrix, its eigenvectors, twice that for LAPACK), or 12 D^2 + 40 D l where it is
    iterated for l columns (see [`top_eigenpairs`]); and one block.
    """
    gram = _folded_gram(stored, block_size) if folds(stored) else _gram(stored, block_size)
    values, vectors, _ = top_eigenpairs(gram, rank)
    return Eigenpairs(vectors.float(), values, float(gram.trace()))


def dual_eigenpairs(stored: StoredGradients, rank: int, block_size: int = BLOCK_NUMBERS) -> Eigenpairs:
    """Top eigenpairs from the N x N matrix of inner products, where N < D; one pass.

    With K = G G^T = W S^2 W^T the eigenvectors of G^T G are G^T W / S. An entry of K takes c^2 (d1 + d2) products of
    the factors, never D. Directions whose eigenvalue is rounding noise are left out, so r may come out smaller: they
    are worth nothing and could not be normalised.

    Memory: the factors, 12 N c (d1 + d2) bytes (dense: 4 N D); 32 N^2 for K and its decomposition, or 12 N^2 + 40 N l
    where it is iterated for l columns, and after that 4 D r + 36 N r; and one block.
    """
    left, right = _gathered(stored, block_size)
    kernel = _kernel(left, right, stored, block_size)
    norms = kernel.diagonal().clone()
    trace = float(norms.sum())
    values, weights, images = top_eigenpairs(kernel, rank)
    del kernel
    keep = values > _NOISE * values[:1].clamp_min(torch.finfo(torch.float64).tiny)
    values, weights, images = values[keep], weights[:, keep], images[:, keep]
    squares = images.square_().div_(values)
    weights = weights.div_(values.sqrt())
    # What these directions hold, a little more than the values of K say where they were iterated for.
    values, order = squares.sum(dim=0).sort(descending=True, stable=True)
    squares, weights = squares[:, order], weights[:, order]

    strong = int((values > _WEAK * trace / stored.count).sum())
    single, weak = weights[:, :strong].float(), weights[:, strong:]
    vectors = torch.empty(stored.dim, len(values))
    step = max(1, block_size // (stored.count * stored.d2))
    for start in range(0, stored.d1, step):
        part = expand(left, right, slice(start, start + step))
        into = vectors[start * stored.d2 : start * stored.d2 + part.shape[1]]
        into[:, :strong] = part.T @ single
        if weak.shape[1]:
            into[:, strong:] = (part.double().T @ weak).float()
    return Eigenpairs(vectors, values, trace, squares, norms)


def top_eigenpairs(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest eigenvalues (descending, not below zero), their eigenvectors, and matrix @ eigenvectors.

    A whole decomposition where r is a large part of n, or n is small. Else subspace iteration in memory, where
    products are cheap: two rounds more than the published streamed one and an eighth more columns. The last product
    is done in float64.

    Args:
        matrix (`Tensor`): (n, n), float64, symmetric and positive semi-definite.
        rank (`int`): r.

    Memory: 24 n^2 bytes beside the matrix; iterated with l columns, 4 n^2 + 40 n l.
    """
    if not iterates(len(matrix), rank):
        values, vectors = torch.linalg.eigh(matrix)
        values, vectors = values.flip(0)[:rank].clamp_min(0), vectors[:, -rank:].flip(1)
        return values, vectors, vectors * values
    width = iteration_width(len(matrix), rank)
    largest = matrix.diagonal().max().clamp_min(torch.finfo(torch.float64).tiny)
    single = torch.empty(matrix.shape)
    for panel in _panels(len(matrix), 1024):
        single[panel] = matrix[panel] / largest
    basis = torch.randn(len(matrix), width, generator=torch.Generator(device="cpu").manual_seed(0))
    for _ in range(1 + POWER_ROUNDS):
        basis = torch.linalg.qr(single @ basis).Q
    del single
    basis = basis.double()
    image = matrix @ basis
    values, rotation = torch.linalg.eigh(basis.T @ image)
    rotation = rotation[:, -rank:].flip(1)
    return values.flip(0)[:rank].clamp_min(0), basis @ rotation, image @ rotation


def _gram(stored: StoredGradients, block_size: int) -> Tensor:
    gram = torch.zeros(stored.dim, stored.dim, dtype=torch.float64)
    panels = _panels(stored.dim, -(-stored.dim // _PANELS))
    for gradients in stored.matrices(block_size):
        for panel in panels:
            gram[panel, panel.start :] += gradients[:, panel].T @ gradients[:, panel.start :]
    return _mirrored(gram, panels)


def _folded_gram(stored: StoredGradients, block_size: int) -> Tensor:
    sides = [torch.triu_indices(d, d) for d in (stored.d1, stored.d2)]
    folded = torch.zeros(sides[0].shape[1], sides[1].shape[1], dtype=torch.float64)
    for left, right in stored.factors(max(1, block_size // (6 * stored.dim))):
        assert right is not None
        pairs = [side[:, i, 0] * side[:, j, 0] for side, (i, j) in zip((left, right), sides, strict=True)]
        folded += pairs[0].T @ pairs[1]
    places = []
    for d, (i, j) in zip((stored.d1, stored.d2), sides, strict=True):
        place = torch.empty(d, d, dtype=torch.int64)
        place[i, j] = place[j, i] = torch.arange(len(i))
        places.append(place)
    gram = torch.empty(stored.d1, stored.d2, stored.d1, stored.d2, dtype=torch.float64)
    for row in range(stored.d1):
        gram[row] = folded[places[0][row]][:, places[1]].transpose(0, 1)
    return gram.view(stored.dim, stored.dim)


def _gathered(stored: StoredGradients, block_size: int) -> tuple[Tensor, Tensor | None]:
    """The factors of all rows, float32."""
    left = torch.empty(stored.count, stored.d1, stored.factor_rank or stored.d2)
    right = None if stored.factor_rank is None else torch.empty(stored.count, stored.d2, stored.factor_rank)
    start = 0
    for left_part, right_part in stored.factors(max(1, block_size // stored.size)):
        rows = slice(start, start + len(left_part))
        start, left[rows] = rows.stop, left_part
        if right is not None and right_part is not None:
            right[rows] = right_part
    return left, right


def _kernel(left: Tensor, right: Tensor | None, stored: StoredGradients, block_size: int) -> Tensor:
    """K = G G^T, float64 (N, N)."""
    count, rank = stored.count, stored.factor_rank
    kernel = torch.zeros(count, count, dtype=torch.float64)
    panels = _panels(count, max(1, min(block_size // count, -(-count // _PANELS))))
    if right is not None and rank is not None and rank**2 * (stored.d1 + stored.d2) < stored.dim:
        columns = [(left[:, :, k].double(), right[:, :, k].double()) for k in range(rank)]
        for panel in panels:
            for u, v in columns:
                for x, y in columns:
                    kernel[panel, panel.start :] += (u[panel] @ x[panel.start :].T) * (v[panel] @ y[panel.start :].T)
        return _mirrored(kernel, panels)
    step = max(1, block_size // (count * stored.d2))
    for start in range(0, stored.d1, step):
        part = expand(left, right, slice(start, start + step)).double()
        for panel in panels:
            kernel[panel, panel.start :] += part[panel] @ part[panel.start :].T
    return _mirrored(kernel, panels)


def _panels(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _mirrored(matrix: Tensor, panels: list[slice]) -> Tensor:
    """The symmetric matrix of which the upper blocks are filled."""
    for panel in panels:
        matrix[panel.stop :, panel] = matrix[panel, panel.stop :].T
    return matrix
