"""Both ends of the scores of each query, and how all of them are spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..algebra.distribution import RunningDistribution, Spread
from ..algebra.ranking import RunningTopK


@dataclass(frozen=True)
class RankedScores:
    """The k best rows of each query, its k2 worst beside them where asked, and the spread of all scores.

    Args:
        scores (`Tensor`): float32 (Q, k), best first.
        indices (`Tensor`): int64 (Q, k), their rows.
        spreads (`Sequence[Spread]`): of each query; empty where there is no row.
        opponent_scores, opponent_indices (`Tensor` or `None`): (Q, k2), worst first; where there are few rows, some of
            them are among the best as well.
        pieces (`Mapping[int, list[int]]`): where documents are ranked, by row the rows of all pieces of its document.
    """

    scores: Tensor
    indices: Tensor
    spreads: Sequence[Spread]
    opponent_scores: Tensor | None = None
    opponent_indices: Tensor | None = None
    pieces: Mapping[int, list[int]] = field(default_factory=dict)


class RunningRanking:
    """Takes in all scores block by block, in any order.

    Args:
        queries (`int`): Q.
        k (`int`): the best rows to keep; fewer come out where fewer rows went in.
        largest (`bool`, *optional*, defaults to `True`): whether the best are the largest.
        opponents (`int`, *optional*, defaults to 0): k2, the worst rows to keep beside them.
    """

    def __init__(self, queries: int, k: int, largest: bool = True, opponents: int = 0):
        self.best = RunningTopK(queries, k, largest)
        self.worst = RunningTopK(queries, opponents, not largest) if opponents else None
        self.spread = RunningDistribution(queries)

    @property
    def ends(self) -> list[RunningTopK]:
        """What keeps the rows of each end."""
        return [self.best] if self.worst is None else [self.best, self.worst]

    def update(self, scores: Tensor, rows: Tensor) -> None:
        """Take in the scores (Q, n) of some rows (n,), ascending; no row twice."""
        self.spread.update(scores)
        for end in self.ends:
            end.update(scores, rows)

    def ranked(self) -> RankedScores:
        """What was kept of the scores so far."""
        worst = (None, None) if self.worst is None else (self.worst.scores, self.worst.indices)
        return RankedScores(self.best.scores, self.best.indices, self.spread.spreads(), *worst)
