"""Percentile bootstrap: how far a mean would move with other queries or other subsets of the same kind."""

import numpy as np

from ..checks import whole_number
from ..errors import EvaluationError


Interval = tuple[float, float]
UNKNOWN: Interval = (float("nan"), float("nan"))


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Raises [`~lorif_hf.errors.EvaluationError`] where there is no such interval."""
    if not 0 < confidence < 1:
        raise EvaluationError(f"confidence must lie between 0 and 1 (0.95, say), found {confidence!r}.")
    whole_number(resamples, "resamples", 1, EvaluationError)


def interval_of(resampled: np.ndarray, confidence: float) -> Interval:
    """The middle part of resampled means; NaN among them (nothing could be measured) is left out."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return UNKNOWN
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean of independent values, (n,), in their unit; NaN where one value says nothing of others."""
    if len(values) < 2:
        return UNKNOWN
    generator = np.random.default_rng((seed, 0))
    # Resample by resample: all of them at once would be `resamples` copies of the values.
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return interval_of(np.array(means), confidence)


def resampled_counts(size: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `size` things is drawn in each resample, (resamples, size); every row sums to `size`."""
    return np.random.default_rng((seed, 1)).multinomial(size, np.full(size, 1 / size), size=resamples)
