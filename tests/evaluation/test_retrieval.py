"""Recall and reciprocal ranks against sorting, query by query."""

import numpy as np
import pytest
import torch

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation import retrieval, retrieval_of_rankings


KS = (1, 3, 10)


def draw(queries=6, rows=40, levels=1000, seed=0):
    generator = np.random.default_rng(seed)
    scores = generator.integers(levels, size=(queries, rows)).astype(float)
    sources = [generator.choice(rows, size=generator.integers(1, 6), replace=False).tolist() for _ in range(queries)]
    return scores, sources


def slow(scores, sources, k):
    """Sort the rows, sources last among equals; (recall at k, reciprocal rank) per query."""
    values = []
    for line, known in zip(scores, sources, strict=True):
        ranking = sorted(range(len(line)), key=lambda row: (-line[row], row in known))
        hits = [rank for rank, row in enumerate(ranking, start=1) if row in known]
        values.append((len([rank for rank in hits if rank <= k]) / len(known), 1 / hits[0]))
    return np.array(values).T


@pytest.mark.parametrize("levels", [3, 1000], ids=["ties", "no ties"])
def test_it_is_what_sorting_gives(levels):
    scores, sources = draw(levels=levels)
    result = retrieval(scores, sources, ks=KS)
    for k in KS:
        recall, reciprocal = slow(scores, sources, k)
        assert result.recall_per_query[k] == pytest.approx(recall) and result.recall[k] == pytest.approx(recall.mean())
        assert result.reciprocal_ranks == pytest.approx(reciprocal) and result.mrr == pytest.approx(reciprocal.mean())


def test_one_query_by_hand():
    scores = torch.tensor([[0.1, 0.9, -0.5, 0.4]])
    result = retrieval(scores, [[3, 2]], ks=[1, 2, 4, 100])
    assert result.recall == {1: 0.0, 2: 0.5, 4: 1.0, 100: 1.0} and result.mrr == 0.5


def test_constant_scores_earn_nothing():
    result = retrieval(np.zeros((1, 50)), [[0]], ks=[1, 49, 50])
    assert result.recall == {1: 0, 49: 0, 50: 1} and result.mrr == 1 / 50


def test_a_source_that_is_named_twice_counts_once():
    assert retrieval([[0.1, 0.9, -0.5, 0.4]], [np.array([3, 2, 3])], ks=[2]).recall == {2: 0.5}
    assert retrieval_of_rankings([[1, 3, 0]], [[3, 2, 3]], ks=[2]).recall == {2: 0.5}


def test_rankings_give_the_same_as_far_as_they_go():
    scores, sources = draw()
    rankings = torch.tensor(scores + np.random.default_rng(1).random(scores.shape)).argsort(descending=True)
    scores = -rankings.argsort().double()
    whole, cut = retrieval(scores, sources, ks=KS), retrieval_of_rankings(rankings[:, :10], sources, ks=KS)
    assert cut.recall == whole.recall
    seen = whole.reciprocal_ranks >= 1 / 10
    assert cut.reciprocal_ranks == pytest.approx(np.where(seen, whole.reciprocal_ranks, 0))
    assert retrieval_of_rankings(rankings[:, :3], [[int(row)] for row in rankings[:, 3]], ks=[3]).mrr == 0


@pytest.mark.parametrize(
    "sources, message",
    [
        ([[1]], "sources must have one list of rows per query: expected 2, found 1"),
        ([[1], []], r"Query 1 must have a list of one source row or more, found \[\]. Leave out queries whose"),
        ([[1], 3], "Query 1 must have a list of one source row or more, found 3"),
        ([[1], [0.5]], "The sources of query 1 must be row numbers, found float64"),
        ([[1], [True]], "The sources of query 1 must be row numbers, found bool"),
        ([[1], [40]], "Query 1 names source row 40: rows must be between 0 and 39, as there are 40 rows"),
        ([[-1], [4]], "Query 0 names source row -1: rows must be between 0 and 39"),
    ],
)
def test_sources_that_do_not_fit_are_refused(sources, message):
    with pytest.raises(EvaluationError, match=message):
        retrieval(draw(2)[0], sources)


def test_scores_and_cuts_are_checked():
    scores, sources = draw(2)
    for k in (0, 1.5, True):
        with pytest.raises(EvaluationError, match="k must be an integer of at least 1"):
            retrieval(scores, sources, ks=[k])
    scores[1, 5] = np.nan
    with pytest.raises(EvaluationError, match="scores must be finite, found nan at query 1, training row 5"):
        retrieval(scores, sources)


@pytest.mark.parametrize(
    "rankings, options, message",
    [
        ([[0, 1], [2, 2]], {}, "The ranking of query 1 names a row twice"),
        (
            [[0, 1], [2, 3]],
            {"ks": [5]},
            r"recall at k=5 needs rankings of at least 5 rows, found 2: .*top_k=5, or",
        ),
        (
            [[0.1, 0.2], [0.3, 0.4]],
            {},
            r"rankings must hold row numbers, found float64. For scores there is",
        ),
    ],
)
def test_rankings_that_are_none_are_refused(rankings, options, message):
    with pytest.raises(EvaluationError, match=message):
        retrieval_of_rankings(rankings, [[0], [1]], **{"ks": [1], **options})
    with pytest.raises(EvaluationError, match="Query 0 names source row -1: rows must be not negative"):
        retrieval_of_rankings([[0, 1]], [[-1]], ks=[1])
