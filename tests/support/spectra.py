"""Stored gradients with a decaying spectrum, and what dense float64 makes of them."""

from itertools import pairwise

import torch

from lorif_hf.algebra.gradients import StoredGradients, expand


ROWS, COLUMNS = 6, 8
DIM = ROWS * COLUMNS


def random_factors(count, rank=1, *, decay=0.4, scale=1.0, seed=0, rows=ROWS, columns=COLUMNS):
    """Factors whose gradients' second moment has a decaying spectrum, as float32."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(count, rows, rank, generator=generator) * decay ** torch.arange(rows).view(1, -1, 1)
    right = torch.randn(count, columns, rank, generator=generator) * decay ** torch.arange(columns).view(1, -1, 1)
    return scale * left, right


def held(left, right, *sizes):
    """The factors (or dense matrices) as stored gradients in blocks of these sizes, the rest in a last one."""
    edges = [0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist(), len(left)]

    def blocks(rows):
        return ((left[a:b], None if right is None else right[a:b]) for a, b in pairwise(edges))

    dense = right is None
    return StoredGradients(
        blocks, len(left), left.shape[1], left.shape[2] if dense else right.shape[1], None if dense else left.shape[2]
    )


def gradients_of(left, right=None):
    """G, (n, D) in float64."""
    return expand(left.double(), None if right is None else right.double())


def truncated_hessian(gradients, rank, damping):
    """H of the top `rank` eigenpairs of G^T G, float64 (D, D); lambda = damping * trace / D."""
    dim = gradients.shape[1]
    _, s, vh = torch.linalg.svd(gradients, full_matrices=False)
    kept = vh[:rank].T * s[:rank].square() @ vh[:rank]
    return kept + damping * float(gradients.square().sum()) / dim * torch.eye(dim, dtype=torch.float64)


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())
