"""Which tokens a score comes from, those of the query's answer and those of the row."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace


Pairs = Mapping[tuple[int, int], Sequence[float]]
"""By query and row, numbers."""


def of_queries(pairs: Pairs, queries: Sequence[int]) -> dict[tuple[int, int], Sequence[float]]:
    """Those of some queries, numbered anew."""
    by_query: dict[int, list[tuple[int, Sequence[float]]]] = {}
    for (query, row), values in pairs.items():
        by_query.setdefault(query, []).append((row, values))
    return {(place, row): held for place, query in enumerate(queries) for row, held in by_query.get(query, ())}


@dataclass(frozen=True)
class Shading:
    """The shares of single tokens in the scores of the rows that are shown.

    Args:
        query_tokens (`Sequence[Sequence[str]]`): per query, the tokens of its answer, as text.
        query_shares (`Mapping[tuple[int, int], Sequence[float]]`): by query and row, what each of these tokens adds to
            the row's score, nats per unit of example weight.
        row_tokens (`Mapping[int, Sequence[str]]`): by row, its tokens as text.
        row_shares (`Mapping[tuple[int, int], Sequence[float]]`): by query and row, what each of the row's tokens adds
            to the score of its gradient as it was before it was rounded and cut for the index.
    """

    query_tokens: Sequence[Sequence[str]]
    query_shares: Pairs
    row_tokens: Mapping[int, Sequence[str]]
    row_shares: Pairs

    def of(self, queries: Sequence[int], rows: Collection[int]) -> "Shading":
        """That of some of the queries, numbered anew, and of some rows."""
        query_shares, row_shares = (of_queries(kept, queries) for kept in (self.query_shares, self.row_shares))
        tokens = {row: texts for row, texts in self.row_tokens.items() if row in rows}
        return replace(
            self,
            query_tokens=[self.query_tokens[query] for query in queries],
            query_shares=query_shares,
            row_tokens=tokens,
            row_shares=row_shares,
        )
