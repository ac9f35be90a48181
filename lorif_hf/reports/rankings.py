"""The ranked rows of a result, one ranking a query or a token of its answer, as pages and plots show them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .distribution import ScoreDistribution


if TYPE_CHECKING:
    from torch import Tensor

    from .attribution import Attribution


@dataclass(frozen=True)
class Ranking:
    """Rows of a query, or of one token of its answer.

    Args:
        query (`int`): the query.
        place, token (`int` and `str`, or `None`): the token of its answer.
        scores (`list[float]`), rows (`list[int]`): the ranked rows, best first, and then the opponents that were asked
            for, lowest first.
        opponents (`int`): how many these are.
        distribution (`ScoreDistribution` or `None`): the scores of all rows.
    """

    query: int
    place: int | None
    token: str | None
    scores: list[float]
    rows: list[int]
    opponents: int
    distribution: ScoreDistribution | None

    def rank(self, place: int) -> int:
        """From 1 of the highest score. An opponent's counts from the end: N, or -1 where N is not known."""
        from_end = place - (len(self.rows) - self.opponents)
        if from_end < 0:
            return place + 1
        return self.distribution.count - from_end if self.distribution is not None else -from_end - 1

    def z(self, place: int) -> float | None:
        """Standard deviations from the mean of all rows."""
        if self.distribution is None or not self.distribution.standard_deviation > 0:
            return None
        return self.distribution.z(self.scores[place])


def rankings(result: "Attribution", query: int) -> Iterator[Ranking]:
    """That of a query, or those of the tokens of its answer."""
    spread: Any = None if result.distribution is None else result.distribution[query]
    if result.tokens is None:
        yield _ranking(result, (query,), None, spread)
        return
    for place, token in enumerate(result.tokens[query]):
        yield _ranking(result, (query, place), token, None if spread is None else spread[place])


def _ranking(
    result: "Attribution", place: tuple[int, ...], token: str | None, distribution: ScoreDistribution | None
) -> Ranking:
    sides = [_side(result.scores[place], result.indices[place])]
    if result.opponent_scores is not None and result.opponent_indices is not None:
        sides.append(_side(result.opponent_scores[place], result.opponent_indices[place]))
    scores, rows = ([value for side in sides for value in side[number]] for number in (0, 1))
    opponents = len(sides[1][1]) if sides[1:] else 0
    return Ranking(place[0], place[1] if place[1:] else None, token, scores, rows, opponents, distribution)


def _side(scores: "Tensor", rows: "Tensor") -> tuple[list[Any], list[Any]]:
    """The rows of an end that there are: where near-duplicates are folded, one ranking may have fewer than others."""
    held = [(score, row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True) if row >= 0]
    return [score for score, _ in held], [row for _, row in held]
