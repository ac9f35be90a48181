"""Ranks against SciPy's."""

import numpy as np
import pytest
from scipy.stats import rankdata

from lorif_hf.evaluation.ranks import average_ranks


@pytest.mark.parametrize("values", [3, 1000], ids=["many ties", "few ties"])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 9), (2, 3, 5)], ids=str)
def test_equal_values_share_their_average_rank(shape, values):
    array = np.random.default_rng(0).integers(values, size=shape)
    assert np.array_equal(average_ranks(array), rankdata(array, axis=-1))


def test_constant_rows_share_one_rank():
    assert average_ranks(np.full((2, 5), 0.3)).tolist() == [[3.0] * 5] * 2


def test_a_tolerance_joins_neighbours_row_by_row():
    values = np.array([[0.0, 1e-9, 1.0], [0.0, 1e-9, 1.0]])
    assert average_ranks(values, np.array([[1e-8], [0.0]])).tolist() == [[1.5, 1.5, 3], [1, 2, 3]]


def test_values_may_be_there_several_times_or_not_at_all():
    values = np.array([[2, 1, 2, 5]])
    ranks = average_ranks(values, 0.0, np.array([[1, 2, 3, 0], [0, 0, 1, 3]]))
    assert ranks[0, :3].tolist() == [4.5, 1.5, 4.5] and ranks[1, 2:].tolist() == [1.0, 3.0]
    for counts, row in zip(([1, 2, 3, 0], [0, 0, 1, 3]), ranks, strict=True):
        drawn = np.repeat(np.arange(4), counts)
        assert row[drawn].tolist() == rankdata(values[0][drawn]).tolist()
