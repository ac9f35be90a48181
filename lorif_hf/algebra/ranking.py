"""A running top-k of scores that come block by block, in any order."""

import torch
from torch import Tensor


class RunningTopK:
    """The k best of a stream of score blocks, per query; ties go to the lower row.

    Args:
        queries (`int`): Q.
        k (`int`): how many to keep; fewer come out where fewer rows went in.
        largest (`bool`, *optional*, defaults to `True`): keep the largest (proponents) or smallest (opponents).

    Attributes:
        scores (`Tensor`): (Q, k), best first.
        indices (`Tensor`): int64 (Q, k), their rows.
    """

    def __init__(self, queries: int, k: int, largest: bool = True):
        self.k = k
        self.largest = largest
        self.scores = torch.empty(queries, 0)
        self.indices = torch.empty(queries, 0, dtype=torch.int64)

    def is_reached(self, scores: Tensor) -> bool:
        """Whether any score of a block (Q, n) may come in. It needs no lock: the edge only rises."""
        kept = self.scores  # read once: another thread may be putting in others
        if kept.shape[1] < self.k:
            return True
        edge = kept[:, -1:]
        return bool(((scores >= edge) if self.largest else (scores <= edge)).any())

    def update(self, scores: Tensor, rows: Tensor) -> None:
        """Take in the scores (Q, n) of some rows (n,), ascending; no row twice."""
        values, columns = _top(scores, self.k, self.largest)
        values = torch.cat([self.scores.to(values.dtype), values], dim=1)
        row_ids = torch.cat([self.indices, rows[columns]], dim=1)
        by_row = row_ids.sort(dim=1).indices
        values, row_ids = values.gather(1, by_row), row_ids.gather(1, by_row)
        order = values.sort(dim=1, descending=self.largest, stable=True).indices[:, : self.k]
        self.indices = row_ids.gather(1, order)
        self.scores = values.gather(1, order)


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
