"""Ranks with ties: what Spearman's correlation and the area under the ROC curve are made of."""

import numpy as np


def average_ranks(values: np.ndarray, tolerance: np.ndarray | float = 0.0, counts: np.ndarray | int = 1) -> np.ndarray:
    """Ranks from 1 along the last axis, ascending; equal values share the average of their ranks.

    Args:
        values (`np.ndarray`): (..., M).
        tolerance (`np.ndarray` or `float`): neighbours this close are equal; broadcasts against (..., 1).
        counts (`np.ndarray` or `int`): how often each value is there; broadcasts against the values, with as many
            axes. One that is not there gets a rank all the same.

    Returns:
        `np.ndarray`: float64 (..., M).
    """
    order = np.argsort(values, axis=-1, kind="stable")
    apart = np.diff(np.take_along_axis(values, order, axis=-1), axis=-1) > tolerance
    edge = np.ones((*values.shape[:-1], 1), dtype=bool)
    counts = np.take_along_axis(
        np.broadcast_to(counts, np.broadcast_shapes(values.shape, np.shape(counts))), order, -1
    )
    upto = np.cumsum(counts, axis=-1)
    # Of each group of equal values: how many there are below it, and with it.
    below = np.maximum.accumulate(np.where(np.concatenate([edge, apart], axis=-1), upto - counts, 0), axis=-1)
    ends = np.where(np.concatenate([apart, edge], axis=-1), upto, upto[..., -1:])
    last = np.flip(np.minimum.accumulate(np.flip(ends, axis=-1), axis=-1), axis=-1)
    ranks = np.empty(upto.shape)
    np.put_along_axis(ranks, order, (below + last + 1) / 2, axis=-1)
    return ranks
