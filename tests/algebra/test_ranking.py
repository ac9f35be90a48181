from itertools import pairwise

import pytest
import torch

from lorif_hf.algebra.ranking import RunningTopK


def stable_sort(scores, k, largest):
    """The k best of a whole score matrix, ties to the lower row: what the running top-k must equal."""
    values, indices = scores.sort(dim=1, descending=largest, stable=True)
    return values[:, :k], indices[:, :k]


def running(scores, k, largest, splits):
    best, start = RunningTopK(len(scores), k, largest), 0
    for size in splits:
        best.update(scores[:, start : start + size], torch.arange(start, start + size))
        start += size
    assert start == scores.shape[1]
    return best


def random_splits(total, generator):
    cuts = torch.randint(0, total + 1, (int(torch.randint(0, 6, (1,), generator=generator)),), generator=generator)
    edges = [0, *sorted(cuts.tolist()), total]
    return [b - a for a, b in pairwise(edges)]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("levels", [2, 5, 1000], ids=["two scores only", "many ties", "few ties"])
@pytest.mark.parametrize("seed", range(20))
def test_the_running_top_k_equals_a_stable_sort_of_everything(seed, levels, largest):
    generator = torch.Generator().manual_seed(seed)
    queries, total, k = (int(torch.randint(1, high, (1,), generator=generator)) for high in (5, 300, 25))
    scores = torch.randint(-levels, levels, (queries, total), generator=generator).float()
    best = running(scores, k, largest, random_splits(total, generator))
    values, indices = stable_sort(scores, k, largest)
    assert torch.equal(best.indices, indices)
    assert torch.equal(best.scores, values)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("splits", [[40], [1] * 40, [20, 0, 20], [39, 1]])
def test_equal_scores_go_to_the_lower_rows(splits, largest):
    best = running(torch.zeros(2, 40), 7, largest, splits)
    assert best.indices.tolist() == [list(range(7))] * 2


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("splits", [[5], [2, 3], [1] * 5])
def test_fewer_rows_than_k_all_come_out(splits, largest):
    scores = torch.tensor([[3.0, 1, 2, 1, 3], [0, 0, 0, 0, 1]])
    best = running(scores, 50, largest, splits)
    values, indices = stable_sort(scores, 50, largest)
    assert torch.equal(best.indices, indices) and torch.equal(best.scores, values)


def test_nothing_comes_out_where_nothing_went_in():
    best = RunningTopK(3, 5)
    assert best.scores.shape == (3, 0) and best.indices.shape == (3, 0)
    best.update(torch.empty(3, 0), torch.arange(0))
    assert best.scores.shape == (3, 0) and best.indices.shape == (3, 0)


def test_rows_are_counted_from_the_first_row_given():
    best = RunningTopK(1, 2)
    best.update(torch.tensor([[1.0, 9, 3]]), torch.arange(1000, 1003))
    assert best.indices.tolist() == [[1001, 1002]]


def test_float64_scores_keep_their_digits():
    scores = 1 + torch.arange(6, dtype=torch.float64).unsqueeze(0) * 1e-12
    assert running(scores, 3, True, [3, 3]).indices.tolist() == [[5, 4, 3]]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_nan_scores_stand_where_a_stable_sort_puts_them(seed, share, largest):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 3, (3, 120), generator=generator).float()
    scores[torch.rand(3, 120, generator=generator) < share] = torch.nan
    best = running(scores, 10, largest, random_splits(120, generator))
    values, indices = stable_sort(scores, 10, largest)
    assert torch.equal(best.indices, indices)
    torch.testing.assert_close(best.scores, values, equal_nan=True)


@pytest.mark.parametrize("largest", [True, False])
def test_infinite_scores_are_ranked_like_any_other(largest):
    scores = torch.tensor([[0.0, torch.inf, 1, -torch.inf, torch.inf, -torch.inf, 2, 3]])
    best = running(scores, 3, largest, [4, 4])
    assert best.indices.tolist() == ([[1, 4, 7]] if largest else [[3, 5, 0]])
