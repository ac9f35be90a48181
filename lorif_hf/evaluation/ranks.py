"""Ranks with ties: what Spearman's correlation and the area under the ROC curve are made of."""

import numpy as np


def tie_groups(ordered: np.ndarray, tolerance: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Where the group of equal values begins and ends, for each place of an ascending row.

    Args:
        ordered (`np.ndarray`): (..., M), ascending along the last axis.
        tolerance (`np.ndarray` or `float`): neighbours this close are one group; broadcasts against (..., 1).

    Returns:
        Two integer arrays (..., M): first and last place of each value's group, counted from 0.
    """
    count = ordered.shape[-1]
    places = np.broadcast_to(np.arange(count), ordered.shape)
    apart = np.diff(ordered, axis=-1) > tolerance
    edge = np.ones((*ordered.shape[:-1], 1), dtype=bool)
    starts = np.where(np.concatenate([edge, apart], axis=-1), places, 0)
    ends = np.where(np.concatenate([apart, edge], axis=-1), places, count - 1)
    first = np.maximum.accumulate(starts, axis=-1)
    last = np.flip(np.minimum.accumulate(np.flip(ends, axis=-1), axis=-1), axis=-1)
    return first, last


def average_ranks(values: np.ndarray, tolerance: np.ndarray | float = 0.0) -> np.ndarray:
    """Ranks 1 to M along the last axis, ascending; equal values share the average of their ranks.

    Args:
        values (`np.ndarray`): (..., M).
        tolerance (`np.ndarray` or `float`): values this close are equal; broadcasts against (..., 1).

    Returns:
        `np.ndarray`: float64 (..., M).
    """
    order = np.argsort(values, axis=-1, kind="stable")
    first, last = tie_groups(np.take_along_axis(values, order, axis=-1), tolerance)
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks
