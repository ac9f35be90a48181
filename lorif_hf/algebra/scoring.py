"""Scores of stored factors against preconditioned queries, and a running top-k."""

import torch
from torch import Tensor


_BLOCK_NUMBERS = 1 << 20  # intermediate numbers per block: 4 MiB of float32, about one core's share of the cache


def bilinear_scores(preconditioned: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """s(q, i) = sum_j u_ij^T Q~_q v_ij, the inner product of Q~_q with left_i @ right_i^T.

    The training side is only read, never transformed: everything that depends on the curvature is in Q~ = H^-1 G~_q.

    Args:
        preconditioned (`Tensor`): (Q, d1, d2), the preconditioned query gradients.
        left (`Tensor`): (n, d1, c).
        right (`Tensor`): (n, d2, c).

    Returns:
        `Tensor`: (Q, n) in the dtype of `preconditioned`. Positive: a proponent (training on it lowers the loss).

    Source: LoRIF (arXiv:2601.21929), section 3; the order of the products is ours (DESIGN, fact 1).
    """
    queries, rows, columns = preconditioned.shape
    count, _, rank = left.shape
    side_by_side = preconditioned.permute(1, 0, 2).reshape(rows, queries * columns)
    scores = preconditioned.new_zeros(queries, count)
    block = max(1, _BLOCK_NUMBERS // max(1, queries * columns))
    for start in range(0, count, block):
        stop = min(start + block, count)
        for j in range(rank):
            u = left[start:stop, :, j].to(preconditioned.dtype)
            v = right[start:stop, :, j].to(preconditioned.dtype)
            images = (u @ side_by_side).view(stop - start, queries, columns)
            scores[:, start:stop] += torch.bmm(images, v.unsqueeze(2)).squeeze(2).T
    return scores


def dense_scores(preconditioned: Tensor, matrices: Tensor) -> Tensor:
    """Inner products of queries (Q, d1, d2) with gradients stored whole (n, d1, d2): (Q, n)."""
    queries = preconditioned.flatten(1)
    scores = queries.new_empty(len(queries), len(matrices))
    block = max(1, _BLOCK_NUMBERS // max(1, queries.shape[1]))
    for start in range(0, len(matrices), block):
        rows = slice(start, start + block)
        scores[:, rows] = queries @ matrices[rows].flatten(1).to(queries.dtype).T
    return scores


class RunningTopK:
    """The k best of a stream of score blocks, per query; ties go to the lower row.

    Args:
        queries (`int`): Q.
        k (`int`): how many to keep; fewer come out where fewer rows went in.
        largest (`bool`, *optional*, defaults to `True`): keep the largest (proponents) or smallest (opponents).
    """

    def __init__(self, queries: int, k: int, largest: bool = True):
        self.k = k
        self.largest = largest
        self.scores = torch.empty(queries, 0)
        self.indices = torch.empty(queries, 0, dtype=torch.int64)

    def update(self, scores: Tensor, first_row: int) -> None:
        """Take in the scores (Q, n) of rows first_row, first_row + 1, ..."""
        values, columns = _top(scores, self.k, self.largest)
        # What is kept already came from lower rows and stands first, so a stable sort breaks ties rightly.
        values = torch.cat([self.scores.to(values.dtype), values], dim=1)
        rows = torch.cat([self.indices, columns + first_row], dim=1)
        order = values.sort(dim=1, descending=self.largest, stable=True).indices[:, : self.k]
        self.scores = values.gather(1, order)
        self.indices = rows.gather(1, order)


def _top(scores: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Like `torch.topk`, but equal scores come in the order of their columns."""
    if scores.shape[1] > k:
        values, columns = scores.topk(k, dim=1, largest=largest)
        edge = values[:, -1:]
        tied_beyond = (~((scores < edge) if largest else (scores > edge))).sum(dim=1) > k
        if not bool(tied_beyond.any()):
            columns = columns.sort(dim=1).values
            values, order = scores.gather(1, columns).sort(dim=1, descending=largest, stable=True)
            return values, columns.gather(1, order)
    values, columns = scores.sort(dim=1, descending=largest, stable=True)
    return values[:, :k], columns[:, :k]
