"""Queries held as products of two thin matrices, where their rank lets us."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .matrices import matrix_sizes
from .scoring import QueryGroup


_ROUNDING = 2.0**-18  # a remainder this much smaller than its query is rounding of float32
_LEAST_RANK = 8  # and the step of ranks: narrower products take as long
_FINDING = 24  # operations that finding a query's factors takes, for each number of it and rank
_CALLS = 2e7  # and what the calls take, in operations
_OVERSAMPLING = 4  # vectors beyond the rank, without which the start may miss a direction


def widest_rank(pairs: int, d1: int, d2: int, queries: int, examples: float = math.inf) -> int:
    """The largest rank at which scoring is clearly cheaper than with whole matrices; 0: none is.

    A pair costs k (d1 + d2) operations instead of d1 d2; whole matrices of many queries share the rebuilt gradients.
    Finding the factors must cost less than they save over all `examples`.
    """
    whole = min(float(pairs), 1 + 7 * pairs / max(1, queries))
    rank = int(0.7 * whole * d1 * d2 / (pairs * (d1 + d2))) // _LEAST_RANK * _LEAST_RANK
    return rank if 0.6 * whole * examples * d1 * d2 > _FINDING * d1 * d2 * rank + _CALLS else 0


def compress(matrices: Tensor, query_ids: Tensor, widest: int, ranks: Sequence[int] | None = None) -> list[QueryGroup]:
    """Hold queries as products left^T right where their rank lets us, to the rounding of float32; else whole.

    A query's gradient has at most the rank of its number of tokens, and whitening keeps that.

    Args:
        matrices (`Tensor`): Q~, (g, d1, d2), float32.
        query_ids (`Tensor`): int64 (g,), which queries these are.
        widest (`int`): largest rank to look for.
        ranks (`Sequence[int]`, *optional*): the rank that each has at most; by default `widest`. One that may have
            more is held whole.

    Source: the randomised range finder of Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithm 4.1, with a
    fixed start; the remainder is computed, not estimated.
    """
    sizes = matrix_sizes(matrices)
    by_rank: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    whole = []
    for number in range(len(matrices)):  # one by one: the temporaries are as large as a layer
        most = widest if ranks is None else ranks[number]
        thin = None
        if 0 < most <= widest:
            thin = _thin(matrices[number] / sizes[number], min(widest, _stepped(most + _OVERSAMPLING)))
        if thin is None:
            whole.append(number)
        else:
            left, right = thin
            by_rank.setdefault(len(left), []).append((number, left, right * sizes[number]))
    groups = []
    for members in by_rank.values():
        at, lefts, rights = zip(*members, strict=True)
        groups.append(QueryGroup(query_ids[torch.tensor(at)], torch.stack(lefts), torch.stack(rights)))
    if whole:
        groups.append(QueryGroup(query_ids[torch.tensor(whole)], matrices[whole]))
    return groups


def _thin(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor] | None:
    """left (k, d1) and right (k, d2), k at most `rank`; `None` where the matrix has more, or is not finite."""
    (left,), (right,) = range_factors(matrix.unsqueeze(0), rank)
    limit = _ROUNDING * float(matrix.norm())
    lost = float((matrix - left.T @ right).norm())
    if not lost <= limit:
        return None
    turn, singular, across = torch.linalg.svd(right, full_matrices=False)
    tails = singular.double().square().flip(0).cumsum(0).flip(0)
    kept = min(len(right), _stepped(int((tails > limit**2 - lost**2).sum())))
    return turn[:, :kept].T @ left, singular[:kept, None] * across[:kept]


def _stepped(rank: int) -> int:
    return max(1, math.ceil(rank / _LEAST_RANK)) * _LEAST_RANK


def joined(groups: Sequence[QueryGroup]) -> list[QueryGroup]:
    """Groups of the same form put together, as they come from several batches."""
    forms: dict[tuple[int, bool], list[QueryGroup]] = {}
    for group in groups:
        forms.setdefault((group.left.shape[1], group.right is None), []).append(group)
    whole = []
    for members in forms.values():
        rights = [group.right for group in members if group.right is not None]
        query_ids, left = (
            torch.cat(parts) for parts in zip(*((group.query_ids, group.left) for group in members), strict=True)
        )
        whole.append(
            members[0] if len(members) == 1 else QueryGroup(query_ids, left, torch.cat(rights) if rights else None)
        )
    return whole


def range_factors(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left (g, k, d1), orthonormal rows, and right (g, k, d2): left^T right comes near to (g, d1, d2)."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    start = torch.randn(matrices.shape[2], rank, generator=generator).to(matrices)
    sizes = matrix_sizes(matrices)
    basis = torch.linalg.qr((matrices / sizes) @ start).Q
    return basis.mT.contiguous(), basis.mT @ matrices
