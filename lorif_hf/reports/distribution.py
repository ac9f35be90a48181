"""How the scores of all rows are spread: what a score is to be compared with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreDistribution:
    """The scores of all rows that were ranked, for one query (or one token of its answer).

    Args:
        count (`int`): N, the rows.
        mean, standard_deviation (`float`): of their scores, nats per unit of example weight, over all N.
        edges (`Sequence[float]`): B + 1 ascending bounds of the bins of a histogram, all of the same width.
        counts (`Sequence[int]`): B, the rows whose score is at least a bin's lower edge and below its upper one; they
            add up to N.
    """

    count: int
    mean: float
    standard_deviation: float
    edges: Sequence[float]
    counts: Sequence[int]

    def z(self, score: float) -> float:
        """How many standard deviations a score is from the mean; NaN where all scores are equal.

        Example:

        >>> ScoreDistribution(4, 1.0, 0.5, [0.0, 2.0], [4]).z(2.0)
        2.0
        """
        if not self.standard_deviation > 0:
            return math.nan
        return (score - self.mean) / self.standard_deviation
