"""Detection of mislabelled training rows: a row that contradicts the others can only be memorised.

Source: self-influence as a sign of mislabelled rows is from Koh and Liang 2017, "Understanding Black-box Predictions
via Influence Functions", arXiv:1703.04730.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EvaluationError
from .arrays import booleans, finite_array
from .ranks import average_ranks


@dataclass(frozen=True)
class MislabelDetectionResult:
    """How well self-influence finds the mislabelled rows.

    Args:
        auroc (`float`): area under the ROC curve: the chance that a mislabelled row has higher self-influence than a
            correct one, ties counted half. 0.5 is chance, 1 is perfect.
        recall (`dict[float, float]`): part of the rows checked, most self-influential first -> part of all mislabelled
            rows that are among them.
        num_mislabelled (`int`): mislabelled rows.
        num_rows (`int`): N, all rows.

    Example:

    ```python
    >>> result = mislabel_detection(index.self_influence(), flipped)
    >>> result.auroc, result.recall[0.1]
    (0.92, 0.71)
    ```
    """

    auroc: float
    recall: dict[float, float]
    num_mislabelled: int
    num_rows: int


def mislabel_detection(
    self_influence: Any, mislabelled: Any, *, fractions: Sequence[float] = (0.05, 0.1, 0.2, 0.3)
) -> MislabelDetectionResult:
    """Whether high self-influence tells the mislabelled rows from the others.

    Args:
        self_influence (array or `Tensor`): (N,), as [`InfluenceIndex.self_influence`] gives it. Any unit: only ranks
            count. High: suspect.
        mislabelled (array or `Tensor`): (N,) booleans, the truth.
        fractions (`Sequence[float]`, *optional*, defaults to `(0.05, 0.1, 0.2, 0.3)`): parts of the rows to check,
            between 0 and 1, rounded up to whole rows. Where the last of them is one of several equal ones, an average
            one is counted.

    Returns:
        [`MislabelDetectionResult`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: lengths that differ, no mislabelled row or no other, NaN or infinity
            (the row is named), a fraction outside (0, 1].

    Example:

    ```python
    >>> mislabel_detection([0.1, 9.0, 0.2, 0.3], [False, True, False, False], fractions=[0.25]).recall
    {0.25: 1.0}
    ```
    """
    values = finite_array(self_influence, "self_influence", ("row",))
    truth = booleans(mislabelled, "mislabelled", ("row",))
    if len(values) != len(truth):
        raise EvaluationError(
            f"mislabelled must have one value per row: expected {len(values)} as in self_influence, found "
            f"{len(truth)}."
        )
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise EvaluationError(
            f"Both mislabelled and correct rows are needed to tell them apart, found {positives} mislabelled and "
            f"{negatives} correct."
        )
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise EvaluationError(f"A fraction to check must lie above 0 and at most at 1, found {fraction!r}.")
    # Mann-Whitney U: the rank sum of the positives, less what it would be if they were the lowest.
    won = average_ranks(values)[truth].sum() - positives * (positives + 1) / 2
    caught = _caught(values, truth)
    # Rounded first: 0.07 x 100 is 7.000000000000001, whose ceiling is 8.
    checked = {fraction: int(np.ceil(np.round(fraction * len(values), 9))) for fraction in fractions}
    recall = {float(fraction): float(caught[rows] / positives) for fraction, rows in checked.items()}
    return MislabelDetectionResult(float(won / (positives * negatives)), recall, positives, len(values))


def _caught(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N + 1,) mislabelled rows expected among the first 0, 1, ..., N, where equal values come in random order."""
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, weights=truth, minlength=len(sizes))
    each = np.repeat(hits[::-1] / sizes[::-1], sizes[::-1])
    return np.concatenate([[0.0], np.cumsum(each)])
