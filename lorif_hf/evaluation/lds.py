"""The linear datamodeling score: do the scores predict what happens when the model is trained on part of the data?

Source: Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EvaluationError
from .arrays import as_array, booleans, finite_array
from .bootstrap import UNKNOWN, Interval, check_bootstrap, interval_of, mean_interval, resampled_counts
from .ranks import average_ranks


_COLUMNS = 65536  # training rows that are summed at once: bounds the memory that float64 takes


@dataclass(frozen=True, eq=False)
class LDSResult:
    """A linear datamodeling score, between -1 and 1. Positive is good: proponents lower the query's loss.

    Args:
        mean (`float`): mean of `per_query`, without the queries of constant loss; NaN where none is left.
        per_query (`np.ndarray`): (Q,) Spearman correlations; NaN where the query's measured losses are constant, 0
            where its predictions are.
        query_interval (`tuple[float, float]`): bootstrap interval of the mean over queries: what other queries would
            give. NaN for fewer than two queries.
        subset_interval (`tuple[float, float]`): the same over subsets: what other retrained models would give; ranked
            anew in each resample and centred on the mean. NaN for fewer than three subsets.
        confidence (`float`): of both intervals.
        num_constant (`int`): queries whose measured losses are constant, left out of the mean.
        num_constant_predictions (`int`): queries whose predictions are constant, counted as 0.

    Example:

    ```python
    >>> result = lds(scores, losses, membership)
    >>> f"{result.mean:.2f} ({result.query_interval[0]:.2f} to {result.query_interval[1]:.2f})"
    '0.45 (0.41 to 0.49)'
    ```
    """

    mean: float
    per_query: np.ndarray
    query_interval: Interval
    subset_interval: Interval
    confidence: float
    num_constant: int
    num_constant_predictions: int


def lds(
    scores: Any, losses: Any, membership: Any, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> LDSResult:
    """Linear datamodeling score of attribution scores against retrained models.

    Per query: Spearman correlation, over subsets, between the sum of the scores of a subset's members and *minus* the
    loss that the model trained on that subset has at the query. Equal values share their average rank.

    Args:
        scores (array or `Tensor`): (Q, N), as [`InfluenceIndex.scores`] gives them; positive: a proponent. Any unit:
            only ranks count.
        losses (array or `Tensor`): (M, Q), the loss at query q of the model trained on subset m; lower is better.
        membership (array or `Tensor`): (M, N) booleans, whether training row n is in subset m.
        confidence (`float`, *optional*, defaults to 0.95): of the bootstrap intervals.
        resamples (`int`, *optional*, defaults to 1000): bootstrap resamples for each interval.
        seed (`int`, *optional*, defaults to 0): of the resampling; the same seed gives the same intervals.

    Returns:
        [`LDSResult`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: shapes that do not fit, fewer than two subsets, a membership that is not
            boolean, NaN or infinity (the place is named).

    Example:

    ```python
    >>> scores, losses, membership = torch.randn(5, 100), torch.randn(20, 5), torch.rand(20, 100) < 0.5
    >>> lds(scores, losses, membership).per_query.shape
    (5,)
    ```
    """
    array = finite_array(scores, "scores", ("query", "training row"))
    members = booleans(membership, "membership", ("subset", "training row"))
    if members.shape[1] != array.shape[1]:
        hint = " It looks transposed: pass membership.T." if len(members) == array.shape[1] else ""
        raise EvaluationError(
            f"membership must have one column per training row: expected {array.shape[1]} as in the scores, found "
            f"{members.shape[1]} (shape {members.shape}).{hint} Score every training row, in the order of the dataset."
        )
    predictions, tolerance = _summed(array, members)
    return _score(predictions, losses, tolerance, confidence, resamples, seed)


def lds_of_predictions(
    predictions: Any, losses: Any, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> LDSResult:
    """The linear datamodeling score of predictions that are not sums of scores.

    Args:
        predictions (array or `Tensor`): (Q, M), how well the model of subset m is predicted to do at query q; higher
            is better.
        losses (array or `Tensor`): (M, Q), lower is better.
        confidence, resamples, seed: as in [`lds`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: as in [`lds`].

    Example:

    ```python
    >>> predictions, losses = torch.randn(20, 5), torch.randn(20, 5)
    >>> lds_of_predictions(predictions, losses).per_query.shape
    (5,)
    ```
    """
    array = finite_array(predictions, "predictions", ("query", "subset")).astype(np.float64)
    return _score(array, losses, np.zeros((len(array), 1)), confidence, resamples, seed)


def _summed(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the members, (Q, M), and how close two of them must be to count as equal, (Q, 1)."""
    sums = np.zeros((len(scores), len(members)))
    sizes = np.zeros((len(scores), 1))
    for start in range(0, scores.shape[1], _COLUMNS):
        block = scores[:, start : start + _COLUMNS].astype(np.float64)
        sums += block @ members[:, start : start + _COLUMNS].T.astype(np.float64)
        sizes += np.abs(block).sum(axis=1, keepdims=True)
    # The same numbers summed in another order differ in the last bits. Rounding must not break a tie.
    return sums, 16 * np.finfo(np.float64).eps * sizes


def _score(
    predictions: np.ndarray, losses: Any, tolerance: np.ndarray, confidence: float, resamples: int, seed: int
) -> LDSResult:
    """The score of predictions (Q, M), of which two within `tolerance` (Q, 1) are equal."""
    check_bootstrap(confidence, resamples)
    queries, subsets = predictions.shape
    shape = as_array(losses, "losses").shape
    if len(shape) == 2 and shape != (subsets, queries):
        hint = " They look transposed: pass losses.T." if shape == (queries, subsets) else ""
        raise EvaluationError(
            f"losses must have one row per subset and one column per query: expected shape ({subsets}, {queries}), "
            f"found {shape}.{hint}"
        )
    if subsets < 2:
        raise EvaluationError(
            f"At least 2 subsets are needed to correlate over, found {subsets}. Retrain on more subsets; 50 give a "
            "usable interval."
        )
    # Minus the loss: positive scores are proponents, and training on proponents lowers the loss.
    gains = -finite_array(losses, "losses", ("subset", "query")).T.astype(np.float64)
    predicted = average_ranks(predictions, tolerance)
    per_query = _correlation(predicted, average_ranks(gains))
    known = ~np.isnan(per_query)
    counted = per_query[known]
    subset_interval = UNKNOWN
    if subsets > 2 and len(counted):
        counts = resampled_counts(subsets, resamples, seed)
        resampled = _resampled_means(predictions, tolerance, gains, counts)
        # The copies of a subset tie, which shifts the correlation of every resample: the mean shift is subtracted.
        shift = resampled.mean() - counted.mean() if len(resampled) else 0.0
        subset_interval = interval_of(np.clip(resampled - shift, -1, 1), confidence)
    return LDSResult(
        mean=float(counted.mean()) if len(counted) else float("nan"),
        per_query=per_query,
        query_interval=mean_interval(counted, confidence=confidence, resamples=resamples, seed=seed),
        subset_interval=subset_interval,
        confidence=confidence,
        num_constant=int((~known).sum()),
        num_constant_predictions=int((np.ptp(predicted, axis=1)[known] == 0).sum()),
    )


def _correlation(predicted: np.ndarray, actual: np.ndarray, counts: np.ndarray | float = 1.0) -> np.ndarray:
    """Pearson correlation of ranks from 1 to M along the last axis, each counted `counts` times.

    NaN where `actual` is constant: there is nothing to predict. Else 0 where `predicted` is constant.
    """
    middle = (predicted.shape[-1] + 1) / 2
    predicted, actual = predicted - middle, actual - middle
    # Ranks are multiples of a half, so these sums are exact, and zero means constant.
    product = (counts * predicted * actual).sum(axis=-1)
    target = (counts * actual**2).sum(axis=-1)
    scale = np.sqrt((counts * predicted**2).sum(axis=-1) * target)
    # No product of such ranks exceeds the scale, except by its rounding.
    ratio = np.clip(np.divide(product, scale, out=np.zeros_like(scale), where=scale > 0), -1, 1)
    return np.where(target > 0, ratio, np.nan)


def _resampled_means(
    predictions: np.ndarray, tolerance: np.ndarray, gains: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """The mean score over queries of each resample of the subsets in which there is one, ranked anew."""
    total, queries = np.zeros(len(counts)), np.zeros(len(counts))
    for prediction, close, gain in zip(predictions, tolerance, gains, strict=True):
        predicted = average_ranks(prediction[None], close, counts)
        correlation = _correlation(predicted, average_ranks(gain[None], 0.0, counts), counts)
        total += np.nan_to_num(correlation)
        queries += ~np.isnan(correlation)
    return total[queries > 0] / queries[queries > 0]
