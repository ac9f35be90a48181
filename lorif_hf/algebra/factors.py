"""Rank-c factors of per-example gradient matrices."""

import torch
from torch import Tensor

from .devices import fixed_normal
from .matrices import Matrices, matrix_sizes


_DROPPED = 1e-5  # a direction this much weaker than the strongest is rounding noise in float32


def factorize(matrices: Matrices, rank: int) -> tuple[Tensor, Tensor]:
    """Factorise each matrix of a batch as left @ right^T by block power iteration.

    8 rounds at rank 1, 16 above. The left columns are orthonormal (or zero, where the matrix has a smaller rank), the
    right ones carry the scale. Each matrix is treated alone: its factors do not depend on its neighbours. The start is
    fixed, so the same matrix always gives the same factors.

    Args:
        matrices (`Matrices`): (n, d1, d2), float32 or float64 (others are computed in float32), or low-rank ones.
        rank (`int`): c, between 1 and min(d1, d2). At the limit the factorisation is exact.

    Returns:
        `tuple[Tensor, Tensor]`: left (n, d1, c) and right (n, d2, c).

    Raises:
        `ValueError`: the rank is outside its limits.

    Source: LoRIF (arXiv:2601.21929), section 3.1, per-example low-rank factorisation.
    """
    if len(matrices.shape) != 3:
        raise ValueError(f"matrices must have shape (n, d1, d2), got {tuple(matrices.shape)}.")
    count, rows, columns = matrices.shape
    limit = min(rows, columns)
    if not 1 <= rank <= limit:
        raise ValueError(f"rank must be between 1 and min(d1, d2) = {limit}, got {rank}.")
    if isinstance(matrices, Tensor):
        matrices = matrices.to(torch.float64 if matrices.dtype == torch.float64 else torch.float32)
        if rank == limit:
            identity = torch.eye(limit, dtype=matrices.dtype, device=matrices.device).expand(count, limit, limit)
            if rows <= columns:
                return identity.clone(), matrices.transpose(1, 2).clone(memory_format=torch.contiguous_format)
            return matrices.clone(), identity.clone()

    # Powers of tiny or huge gradients leave the range of float32: work on matrices of size one.
    scale = matrix_sizes(matrices)
    scaled = matrices / scale
    transposed = scaled.mT
    image = scaled @ fixed_normal(columns, rank, scale, drawn=torch.float64)
    for _ in range(_rounds(rank)):
        image = scaled @ _orthonormalize(transposed @ _orthonormalize(image))
    left = _orthonormalize(image, dropped=_DROPPED)
    return left, (transposed @ left) * scale


def _rounds(rank: int) -> int:
    return 8 if rank == 1 else 16


def factor_products(rank: int) -> int:
    """Matrix-vector products that [`factorize`] takes for each matrix."""
    return rank * (2 * _rounds(rank) + 2)


def _orthonormalize(columns: Tensor, dropped: float = 0.0) -> Tensor:
    """Gram-Schmidt over the last axis of (n, d, c), twice for accuracy.

    A column of which less than `dropped` times the strongest is left becomes zero: only in the last round, when a weak
    direction can be told from a dependent one. A QR decomposition would give a dependent column an arbitrary
    direction, made of rounding noise, and with it factors that change from batch to batch.
    """
    strongest = columns.norm(dim=1).amax(dim=1, keepdim=True) if columns.shape[0] else columns.new_zeros(0, 1)
    result = torch.zeros_like(columns)
    for j in range(columns.shape[2]):
        column = columns[:, :, j : j + 1]
        done = result[:, :, :j]
        for _ in range(2 if j else 0):
            column = column - done @ (done.transpose(1, 2) @ column)
        norm = column.norm(dim=1)
        keep = norm > dropped * strongest
        result[:, :, j] = torch.where(keep, column[:, :, 0] / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)
    return result


def reconstruct(left: Tensor, right: Tensor | None) -> Tensor:
    """left @ right^T of each example: (n, d1, c), (n, d2, c) -> (n, d1, d2); without right, left is the matrix."""
    return left if right is None else left @ right.transpose(1, 2)
