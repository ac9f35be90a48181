"""Mislabel detection against every pair of rows, and against random orders of equal ones."""

import numpy as np
import pytest
import torch

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation import mislabel_detection


def draw(rows=60, levels=1000, seed=0):
    generator = np.random.default_rng(seed)
    mislabelled = generator.random(rows) < 0.2
    return np.floor(generator.random(rows) * levels + mislabelled * levels / 3), mislabelled


@pytest.mark.parametrize("levels", [4, 1000], ids=["ties", "no ties"])
def test_the_area_is_the_part_of_pairs_that_are_won(levels):
    influence, mislabelled = draw(levels=levels)
    pairs = [
        (1.0 if bad > good else 0.5 if bad == good else 0.0)
        for bad in influence[mislabelled]
        for good in influence[~mislabelled]
    ]
    assert mislabel_detection(influence, mislabelled).auroc == pytest.approx(np.mean(pairs), abs=1e-12)


def test_perfect_inverted_and_blind():
    truth = np.array([True, False, True, False])
    assert mislabel_detection([4, 1, 3, 2], truth).auroc == 1.0
    assert mislabel_detection([1, 4, 2, 3], truth).auroc == 0.0
    assert mislabel_detection([7, 7, 7, 7], truth).auroc == 0.5


def test_what_is_found_among_the_most_suspect():
    influence, mislabelled = draw()
    fractions = (0.05, 0.1, 0.5, 1.0)
    result = mislabel_detection(torch.tensor(influence), torch.tensor(mislabelled), fractions=fractions)
    order = np.argsort(-influence)
    expected = {p: mislabelled[order[: int(np.ceil(p * 60))]].sum() / mislabelled.sum() for p in fractions}
    assert result.recall == pytest.approx(expected) and result.recall[1.0] == 1.0
    assert (result.num_mislabelled, result.num_rows) == (mislabelled.sum(), 60)


def test_of_equal_rows_an_average_one_is_checked():
    influence, mislabelled = draw(levels=3)
    generator, recalls = np.random.default_rng(1), []
    for _ in range(4000):
        shuffled = generator.permutation(60)
        order = shuffled[np.argsort(-influence[shuffled], kind="stable")]
        recalls.append(mislabelled[order[:15]].sum() / mislabelled.sum())
    assert mislabel_detection(influence, mislabelled, fractions=[0.25]).recall[0.25] == pytest.approx(
        np.mean(recalls), abs=0.01
    )


def test_a_fraction_is_rounded_up_to_rows_but_not_by_rounding_itself():
    truth = np.arange(100) < 8
    result = mislabel_detection(-np.arange(100), truth, fractions=[0.07, 0.001, 0.071])
    assert result.recall == {0.07: 7 / 8, 0.001: 1 / 8, 0.071: 1.0}  # 0.07 x 100 = 7.000000000000001


@pytest.mark.parametrize(
    "influence, mislabelled, options, message",
    [
        ([1.0, 2.0], [True], {}, "mislabelled must have one value per row: expected 2 as in self_influence, found 1"),
        (
            [1.0, 2.0],
            [False, False],
            {},
            "Both mislabelled and correct rows are needed.*found 0 mislabelled and 2 c",
        ),
        ([1.0, 2.0], [True, True], {}, "found 2 mislabelled and 0 correct"),
        ([1.0, np.nan], [True, False], {}, "self_influence must be finite, found nan at row 1"),
        ([1.0, 2.0], [1, 0], {}, "mislabelled must be boolean, found int64"),
        ([1.0, 2.0], [True, False], {"fractions": [5]}, "must lie above 0 and at most at 1, found 5"),
        ([1.0, 2.0], [True, False], {"fractions": [0]}, "must lie above 0 and at most at 1, found 0"),
    ],
)
def test_what_does_not_fit_is_refused(influence, mislabelled, options, message):
    with pytest.raises(EvaluationError, match=message):
        mislabel_detection(influence, mislabelled, **options)
