"""Eigenpairs from a sketch, where neither the Gram matrix nor that of the rows can be formed."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .gradients import BLOCK_NUMBERS, StoredGradients, expand, factor_squared_norms
from .gram import Eigenpairs


OVERSAMPLE = 10  # columns beyond the rank, at least


def nystroem_eigenpairs(
    stored: StoredGradients, rank: int, width: int, *, seed: int = 0, block_size: int = BLOCK_NUMBERS
) -> Eigenpairs:
    """Top eigenpairs by a Nystroem approximation of fixed rank, one pass.

    The test vectors are a (x) b, so that a row's inner products with them take l (d1 + d2) c operations, not l D. The
    eigenvalues are those of the approximation, never above the true ones by more than rounding.

    Args:
        stored (`StoredGradients`): the gradients.
        rank (`int`): r.
        width (`int`): l, columns of the sketch, between r and D: wider is better.
        seed (`int`): of the test vectors.
        block_size (`int`): numbers of a block.

    Memory: 4 D (l + r) + 48 l^2 bytes and one block.

    Raises:
        `ValueError`: the gradients are too large for float32.

    Source: Tropp, Yurtsever, Udell, Cevher 2017 (arXiv:1706.05736), algorithm 3.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    a, b = (torch.randn(d, width, generator=generator) for d in (stored.d1, stored.d2))
    a, b = a / a.norm(dim=0), b / b.norm(dim=0)
    sketch, trace = _sketch(stored, a, b, block_size)
    chunks = list(_chunks(stored, max(1, block_size // (2 * stored.d2 * width))))
    core, total = torch.zeros(width, width, dtype=torch.float64), 0.0
    for rows, span in chunks:
        core += _test_vectors(a[rows], b).double().T @ sketch[span].double()
        total += float(sketch[span].double().square().sum())
    if total == 0:  # no gradient at all, or none whose square is a float32
        return Eigenpairs(torch.eye(stored.dim, rank), torch.zeros(rank, dtype=torch.float64), trace)
    if not total < float("inf"):
        raise ValueError("the squares of the gradients are beyond float32")
    # A shift of rounding size keeps the core positive definite; its product with the test vectors costs nothing.
    overlap = (a.double().T @ a.double()) * (b.double().T @ b.double())
    core = (core + core.T) / 2
    shift = torch.finfo(torch.float32).eps * (total / width) ** 0.5
    root, info = torch.linalg.cholesky_ex(core + shift * overlap, upper=True)
    while int(info):
        shift *= 10
        root, info = torch.linalg.cholesky_ex(core + shift * overlap, upper=True)
    small = torch.zeros_like(core)
    for rows, span in chunks:
        part = sketch[span].double().add_(_test_vectors(a[rows], b), alpha=shift)
        part = torch.linalg.solve_triangular(root, part, upper=True, left=False)
        small += part.T @ part
        sketch[span] = part
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values[-rank:].flip(0).clamp_min(shift), rotation[:, -rank:].flip(1)
    rotation = (rotation / values.sqrt()).float()
    vectors = torch.empty(stored.dim, rank)
    for _, span in chunks:
        torch.mm(sketch[span], rotation, out=vectors[span])
    return Eigenpairs(vectors, values - shift, trace)


def _sketch(stored: StoredGradients, a: Tensor, b: Tensor, block_size: int) -> tuple[Tensor, float]:
    """sum_i g_i (g_i^T Omega), float32 (D, l), and the trace."""
    width = a.shape[1]
    sketch, trace = torch.zeros(stored.dim, width), 0.0
    for left, right in stored.factors(_rows(stored, width, block_size)):
        trace += float(factor_squared_norms(left, right).sum())
        coefficients = torch.zeros(len(left), width)
        if right is not None:
            for k in range(left.shape[2]):
                coefficients += (left[:, :, k] @ a) * (right[:, :, k] @ b)
        else:
            for rows, _ in _chunks(stored, max(1, block_size // (2 * stored.d2 * width))):
                coefficients += expand(left, None, rows) @ _test_vectors(a[rows], b)
        _accumulate(sketch, left, right, coefficients, stored, block_size)
    return sketch, trace


def _accumulate(
    image: Tensor, left: Tensor, right: Tensor | None, coefficients: Tensor, stored: StoredGradients, block_size: int
) -> None:
    """Add sum_i vec(G~_i) coefficients_i to (D, l): a slice of it at a time, all rows in one product."""
    for rows, span in _chunks(stored, max(1, block_size // (max(1, len(left)) * stored.d2))):
        image[span].addmm_(expand(left, right, rows).T, coefficients)


def _rows(stored: StoredGradients, width: int, block_size: int) -> int:
    """Examples of a block: long sums, so that little of the image is rewritten."""
    return max(1, block_size // max(2 * width, stored.size))


def _test_vectors(a: Tensor, b: Tensor) -> Tensor:
    """(k, l), (d2, l) -> (k d2, l): the columns a (x) b."""
    return (a.unsqueeze(1) * b).flatten(0, 1)


def _chunks(stored: StoredGradients, step: int) -> Iterator[tuple[slice, slice]]:
    """Rows of the gradients, `step` at a time, and where they lie in the flattened ones."""
    for start in range(0, stored.d1, step):
        stop = min(start + step, stored.d1)
        yield slice(start, stop), slice(start * stored.d2, stop * stored.d2)
