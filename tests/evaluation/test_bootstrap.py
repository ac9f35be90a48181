import math

import numpy as np
import pytest

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation.bootstrap import check_bootstrap, interval_of, mean_interval, resampled_counts


OPTIONS = {"confidence": 0.95, "resamples": 4000, "seed": 0}


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=400)
    low, high = mean_interval(values, **OPTIONS)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_a_higher_confidence_is_wider_and_a_seed_repeats_itself():
    values = np.arange(30.0)
    narrow, wide = (mean_interval(values, **{**OPTIONS, "confidence": c}) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert mean_interval(values, **OPTIONS) == mean_interval(values, **OPTIONS)
    assert mean_interval(values, **OPTIONS) != mean_interval(values, **{**OPTIONS, "seed": 1})


def test_one_value_says_nothing_of_others():
    assert np.isnan(mean_interval(np.array([1.0]), **OPTIONS)).all()
    assert np.isnan(interval_of(np.full(3, np.nan), 0.9)).all()


def test_what_could_not_be_measured_is_left_out():
    assert interval_of(np.array([np.nan, 1.0, 3.0]), 0.5) == (1.5, 2.5)


def test_counts_are_draws_with_replacement():
    counts = resampled_counts(5, 2000, 0)
    assert counts.shape == (2000, 5) and set(counts.sum(axis=1)) == {5}
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.1) and (counts == 0).any() and (counts > 1).any()


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_lies_between_0_and_1(confidence):
    with pytest.raises(EvaluationError, match="^confidence must lie between 0 and 1"):
        check_bootstrap(confidence, 10)


def test_there_is_at_least_one_resample():
    with pytest.raises(EvaluationError, match="resamples must be an integer of at least 1, got 0"):
        check_bootstrap(0.9, 0)
