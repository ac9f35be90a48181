"""Retrieval: are the training rows that are known to be behind a query ranked first?

Recall at k and mean reciprocal rank, as everywhere in information retrieval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import whole_number
from ..errors import EvaluationError
from .arrays import as_array, finite_array


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """How early the known sources come. All values lie between 0 and 1; higher is better.

    Args:
        recall (`dict[int, float]`): k -> part of a query's sources among its first k rows, mean over queries.
        mrr (`float`): mean over queries of 1 / rank of the first source.
        recall_per_query (`dict[int, np.ndarray]`): k -> (Q,).
        reciprocal_ranks (`np.ndarray`): (Q,), 0 where no source is in the ranking.

    Example:

    ```python
    >>> result = retrieval(index.scores(model, queries), sources)
    >>> result.mrr, result.recall[10]
    (0.8, 0.95)
    ```
    """

    recall: dict[int, float]
    mrr: float
    recall_per_query: dict[int, np.ndarray]
    reciprocal_ranks: np.ndarray


def retrieval(scores: Any, sources: Sequence[Sequence[int]], *, ks: Sequence[int] = (1, 10, 100)) -> RetrievalResult:
    """Recall at k and mean reciprocal rank of the known sources under attribution scores.

    Args:
        scores (array or `Tensor`): (Q, N), as [`InfluenceIndex.scores`] gives them; positive: a proponent. A source
            that ties with other rows comes after them, so that constant scores earn nothing.
        sources (`Sequence[Sequence[int]]`): per query the numbers of its source rows, one or more; a row that is
            named twice counts once.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 10, 100)`): where to cut for the recall.

    Returns:
        [`RetrievalResult`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: another number of queries, a query without sources, a source that is no
            row, NaN or infinity in the scores (the place is named), a k below 1.

    Example:

    ```python
    >>> retrieval([[0.1, 0.9, 0.3]], [[1]], ks=[1]).recall
    {1: 1.0}
    ```
    """
    array = finite_array(scores, "scores", ("query", "training row"))
    rows = _source_rows(sources, len(array), array.shape[1])
    return _result([_ranks(_ranking(line, known), known) for line, known in zip(array, rows, strict=True)], ks)


def retrieval_of_rankings(
    rankings: Any, sources: Sequence[Sequence[int]], *, ks: Sequence[int] = (1, 10)
) -> RetrievalResult:
    """The same for rankings that are cut off, such as [`Attribution.indices`]. A source that is not in them counts 0.

    Args:
        rankings (array or `Tensor`): (Q, K) row numbers, best first.
        sources, ks: as in [`retrieval`]; no k may exceed K.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: as in [`retrieval`]; a ranking that names a row twice.

    Example:

    ```python
    >>> retrieval_of_rankings(index.attribute(model, queries, top_k=10).indices, sources, ks=[1, 10]).mrr
    0.8
    ```
    """
    array = finite_array(rankings, "rankings", ("query", "rank"))
    if array.dtype.kind not in "iu":
        raise EvaluationError(f"rankings must hold row numbers, found {array.dtype}. For scores there is retrieval().")
    for query, line in enumerate(array):
        if len(np.unique(line)) != len(line):
            raise EvaluationError(f"The ranking of query {query} names a row twice: each row has one rank.")
    if ks and max(ks) > array.shape[1]:
        raise EvaluationError(
            f"recall at k={max(ks)} needs rankings of at least {max(ks)} rows, found {array.shape[1]}: attribute with "
            f"top_k={max(ks)}, or ask for smaller ks."
        )
    rows = _source_rows(sources, len(array), None)
    return _result([_ranks(line, known) for line, known in zip(array, rows, strict=True)], ks)


def _source_rows(sources: Any, queries: int, count: int | None) -> list[np.ndarray]:
    """Each query's sources, ascending and each once."""
    if len(sources) != queries:
        raise EvaluationError(
            f"sources must have one list of rows per query: expected {queries}, found {len(sources)}."
        )
    checked = []
    for query, listed in enumerate(sources):
        rows = as_array(listed, f"The sources of query {query}")
        if rows.ndim != 1 or not rows.size:
            raise EvaluationError(
                f"Query {query} must have a list of one source row or more, found {listed!r}. Leave out queries whose "
                "sources are not known."
            )
        if rows.dtype.kind not in "iu":
            raise EvaluationError(f"The sources of query {query} must be row numbers, found {rows.dtype}.")
        outside = rows[(rows < 0) | (rows >= (np.inf if count is None else count))]
        if len(outside):
            limit = "not negative" if count is None else f"between 0 and {count - 1}, as there are {count} rows"
            raise EvaluationError(f"Query {query} names source row {outside[0]}: rows must be {limit}.")
        checked.append(np.unique(rows))
    return checked


def _ranking(scores: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """The rows, best first; a source behind every other row of the same score."""
    is_other = np.isin(np.arange(len(scores)), sources, invert=True)
    return np.lexsort((is_other, scores))[::-1]


def _ranks(ranking: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Ranks of the sources, from 1, ascending; infinite where one is not in the list."""
    ranks = np.flatnonzero(np.isin(ranking, sources)) + 1.0
    return np.concatenate([ranks, np.full(len(sources) - len(ranks), np.inf)])


def _result(ranks: list[np.ndarray], ks: Sequence[int]) -> RetrievalResult:
    """The measures of each query's ranks of its sources, ascending."""
    cuts = [whole_number(k, "k", 1, EvaluationError) for k in ks]
    recalls = {k: np.array([(of_query <= k).mean() for of_query in ranks]) for k in cuts}
    reciprocal = np.array([1 / of_query[0] for of_query in ranks])
    means = {k: float(values.mean()) for k, values in recalls.items()}
    return RetrievalResult(means, float(reciprocal.mean()), recalls, reciprocal)
