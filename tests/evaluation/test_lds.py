"""The linear datamodeling score against SciPy, query by query and resample by resample."""

import importlib
import time
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation import lds, lds_of_predictions
from lorif_hf.evaluation.bootstrap import interval_of, mean_interval, resampled_counts


def draw(queries=4, rows=30, subsets=12, seed=0, ties=False):
    """Scores, and losses that they half explain; with `ties`, small integers."""
    generator = np.random.default_rng(seed)
    membership = generator.random((subsets, rows)) < 0.5
    scores = generator.normal(size=(queries, rows))
    noise = generator.normal(size=(subsets, queries)) * 3
    losses = noise - membership @ scores.T
    if ties:
        scores, losses = np.round(scores), np.round(losses / 4)
    return scores, losses, membership


def slow(scores, losses, membership):
    """(Q,) by the definition, one query and one subset at a time."""
    per_query = []
    for query, line in enumerate(scores):
        sums = [sum(score for score, member in zip(line, row, strict=True) if member) for row in membership]
        gains = [-loss for loss in losses[:, query]]
        constant = len(set(gains)) == 1, len(set(sums)) == 1
        per_query.append(np.nan if constant[0] else 0.0 if constant[1] else spearmanr(sums, gains).statistic)
    return np.array(per_query)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("queries, subsets", [(1, 2), (1, 12), (5, 3), (20, 40)])
def test_it_is_spearman_query_by_query(queries, subsets, ties):
    scores, losses, membership = draw(queries, 30, subsets, ties=ties)
    result = lds(scores, losses, membership, resamples=20)
    expected = slow(scores, losses, membership)
    assert result.per_query == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert result.mean == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_proponents_that_lower_the_loss_score_one():
    scores, _, membership = draw()
    sums = membership @ scores.T
    assert lds(scores, -sums, membership).mean == 1.0
    assert lds(scores, sums, membership).mean == -1.0
    assert lds(-scores, sums, membership).mean == 1.0


def test_it_agrees_with_the_predictions_made_elsewhere():
    scores, losses, membership = draw(ties=True)
    summed, predicted = lds(scores, losses, membership), lds_of_predictions(scores @ membership.T, losses)
    assert summed.mean == predicted.mean and summed.subset_interval == predicted.subset_interval


def test_tensors_of_any_precision_are_taken():
    scores, losses, membership = draw(ties=True)
    expected = lds(scores, losses, membership).mean
    for dtype in (torch.bfloat16, torch.float32, torch.int64):
        tensors = torch.tensor(scores, dtype=dtype), torch.tensor(losses), torch.tensor(membership)
        assert lds(*tensors).mean == expected


def test_integer_losses_without_a_sign_do_not_wrap_around():
    scores, losses, membership = draw(ties=True)
    shifted = losses - losses.min()
    assert lds(scores, shifted.astype(np.uint8), membership).mean == lds(scores, shifted, membership).mean


def test_scores_of_many_rows_are_summed_in_blocks(monkeypatch):
    scores, losses, membership = draw(rows=100)
    whole = lds(scores, losses, membership)
    monkeypatch.setattr(importlib.import_module("lorif_hf.evaluation.lds"), "_COLUMNS", 7)
    assert lds(scores, losses, membership).per_query == pytest.approx(whole.per_query, abs=1e-12)


def test_a_query_of_constant_loss_is_left_out_and_counted():
    scores, losses, membership = draw()
    losses[:, 2] = 1.5
    result = lds(scores, losses, membership)
    assert np.isnan(result.per_query).tolist() == [False, False, True, False]
    assert result.num_constant == 1 and result.num_constant_predictions == 0
    assert result.mean == pytest.approx(result.per_query[[0, 1, 3]].mean())
    counted = result.per_query[[0, 1, 3]]
    assert result.query_interval == mean_interval(counted, confidence=0.95, resamples=1000, seed=0)


def test_a_query_of_constant_predictions_counts_as_zero():
    scores, losses, membership = draw()
    scores[1] = 0.0
    result = lds(scores, losses, membership)
    assert result.per_query[1] == 0 and result.num_constant_predictions == 1 and result.num_constant == 0
    assert result.mean == pytest.approx(result.per_query.sum() / 4)
    losses[:, 1] = 0.0  # there is nothing to predict: that comes first
    result = lds(scores, losses, membership)
    assert np.isnan(result.per_query[1]) and (result.num_constant, result.num_constant_predictions) == (1, 0)


def test_rounding_does_not_break_ties():
    """The same tenths, summed in another order, differ in the last bits."""
    generator = np.random.default_rng(0)
    membership = np.array([generator.permutation(np.arange(101) < 37) for _ in range(40)])
    tenths = generator.integers(1, 4, size=(1, 101))
    losses = generator.normal(size=(40, 1))
    exact, rounded = tenths @ membership.T, (tenths / 10) @ membership.T
    assert len(np.unique(rounded)) > len(np.unique(exact))
    assert lds(tenths / 10, losses, membership).mean == lds_of_predictions(exact, losses).mean
    result = lds(np.full((1, 101), 0.1), losses, membership)
    assert result.per_query.tolist() == [0.0] and result.num_constant_predictions == 1


def test_no_query_is_left():
    scores, losses, membership = draw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = lds(scores, np.ones_like(losses), membership)
    assert np.isnan([result.mean, *result.query_interval, *result.subset_interval]).all() and result.num_constant == 4


def test_one_query_or_two_subsets_give_no_interval():
    result = lds(*draw(queries=1))
    assert np.isnan(result.query_interval).all() and not np.isnan(result.subset_interval).any()
    result = lds(*draw(subsets=2))
    assert np.isnan(result.subset_interval).all() and not np.isnan(result.query_interval).any()


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_over_subsets_ranks_every_resample_anew(ties):
    scores, losses, membership = draw(subsets=6, ties=ties)
    expected = []
    for counts in resampled_counts(6, 200, seed=3):
        drawn = np.repeat(np.arange(6), counts)
        per_query = slow(scores, losses[drawn], membership[drawn])
        expected.append(np.nan if np.isnan(per_query).all() else np.nanmean(per_query))
    result = lds(scores, losses, membership, resamples=200, seed=3, confidence=0.8)
    centred = np.clip(np.array(expected) - np.nanmean(expected) + result.mean, -1, 1)
    assert result.subset_interval == pytest.approx(interval_of(centred, 0.8), abs=1e-12)


def test_the_interval_over_subsets_holds_the_mean_even_where_copies_would_move_it():
    scores, _, membership = draw(50, 200, 60)
    noise = np.random.default_rng(1).normal(size=(60, 50))
    result = lds(scores, noise - membership @ scores.T, membership)
    assert result.subset_interval[0] < result.mean < result.subset_interval[1] < 1


def test_the_interval_over_queries_is_that_of_their_mean():
    result = lds(*draw(queries=9), confidence=0.9, resamples=300, seed=5)
    assert result.query_interval == mean_interval(result.per_query, confidence=0.9, resamples=300, seed=5)
    assert result.confidence == 0.9


def test_intervals_shrink_with_more_queries_and_more_subsets():
    few, many = lds(*draw(10, 40, 15)), lds(*draw(160, 40, 15))
    assert np.ptp(many.query_interval) < 0.5 * np.ptp(few.query_interval)
    few, many = lds(*draw(10, 40, 15)), lds(*draw(10, 40, 240))
    assert np.ptp(many.subset_interval) < 0.5 * np.ptp(few.subset_interval)


def test_a_hundred_queries_and_subsets_take_seconds():
    arguments = draw(100, 1000, 100)
    start = time.perf_counter()
    lds(*arguments)
    assert time.perf_counter() - start < 20  # measured: under two; a loop over SciPy takes minutes


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s, y, m: (s, y, m[:, :-1]),
            r"one column per training row: expected 30 as in the scores, found 29 \(s",
        ),
        (lambda s, y, m: (s, y, m.T), r"found 12 \(shape \(30, 12\)\). It looks transposed: pass membership.T. Score"),
        (lambda s, y, m: (s, y, m.astype(int)), "membership must be boolean, found int64"),
        (lambda s, y, m: (s, y, m[0]), r"membership must have 2 axes \(one subset, one training row\), found shape"),
        (lambda s, y, m: (s, y[:1], m[:1]), "At least 2 subsets are needed to correlate over, found 1. Retrain on m"),
        (lambda s, y, m: (s, y[:, :3], m), r"expected shape \(12, 4\), found \(12, 3\)\.$"),
        (lambda s, y, m: (s, y[:5], m), r"expected shape \(12, 4\), found \(5, 4\)"),
        (lambda s, y, m: (s, y.T, m), r"found \(4, 12\). They look transposed: pass losses.T"),
        (lambda s, y, m: (s, y[:, 0], m), r"losses must have 2 axes \(one subset, one query\), found shape \(12,\)"),
        (
            lambda s, y, m: (s[0], y, m),
            r"must have 2 axes \(one query, one training row\), found shape \(30,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(EvaluationError, match=message):
        lds(*change(*draw()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_named_with_their_place(bad):
    scores, losses, membership = draw()
    losses[7, 2] = bad
    with pytest.raises(EvaluationError, match=f"losses must be finite, found {bad} at subset 7, query 2"):
        lds(scores, losses, membership)
    scores[3, 21] = bad
    with pytest.raises(EvaluationError, match=f"scores must be finite, found {bad} at query 3, training row 21"):
        lds(scores, losses, membership)


@pytest.mark.parametrize("options, message", [({"confidence": 95}, "confidence must"), ({"resamples": 0}, "resampl")])
def test_options_are_checked(options, message):
    with pytest.raises(EvaluationError, match=message):
        lds(*draw(), **options)
