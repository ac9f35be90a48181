from itertools import pairwise

import pytest
import torch

from lorif_hf.algebra import scoring
from lorif_hf.algebra.scoring import RunningTopK, bilinear_scores, dense_scores


def random_problem(queries, count, rank, rows=5, columns=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (queries, rows, columns), (count, rows, rank), (count, columns, rank)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def double_loop(preconditioned, left, right):
    """s(q, i) = sum_j u_ij^T Q~_q v_ij, one pair at a time in float64."""
    scores = torch.zeros(len(preconditioned), len(left), dtype=torch.float64)
    for q, query in enumerate(preconditioned.double()):
        for i in range(len(left)):
            for j in range(left.shape[2]):
                scores[q, i] += left[i, :, j].double() @ query @ right[i, :, j].double()
    return scores


@pytest.mark.parametrize("queries, count, rank", [(3, 11, 2), (1, 11, 1), (3, 1, 1), (1, 1, 5), (0, 4, 1), (2, 0, 3)])
@pytest.mark.parametrize("block_numbers", [1, 50, 1 << 20])
def test_scores_equal_the_double_loop(monkeypatch, queries, count, rank, block_numbers):
    monkeypatch.setattr(scoring, "_BLOCK_NUMBERS", block_numbers)
    problem = random_problem(queries, count, rank)
    scores = bilinear_scores(*problem)
    assert scores.shape == (queries, count) and scores.dtype == torch.float64
    torch.testing.assert_close(scores, double_loop(*problem), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 6), (6, 1), (4, 4)])
def test_scores_equal_the_inner_product_with_the_reconstructed_gradients(rows, columns):
    preconditioned, left, right = random_problem(4, 9, 1, rows, columns, seed=1)
    gradients = torch.einsum("irc,ikc->irk", left, right)
    expected = preconditioned.flatten(1) @ gradients.flatten(1).T
    torch.testing.assert_close(bilinear_scores(preconditioned, left, right), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_factors_are_widened_and_not_rounded(dtype):
    preconditioned, left, right = random_problem(3, 20, 2, seed=2)
    left, right = left.to(dtype), right.to(dtype)
    scores = bilinear_scores(preconditioned.float(), left, right)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), double_loop(preconditioned, left, right), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_tiny_and_huge_queries_keep_their_digits(scale):
    preconditioned, left, right = random_problem(2, 6, 1, seed=3)
    scores = bilinear_scores((preconditioned * scale).float(), left.float(), right.float()).double() / scale
    torch.testing.assert_close(scores, double_loop(preconditioned, left, right), rtol=1e-4, atol=1e-4)


def test_nan_factors_spoil_their_own_row_only():
    preconditioned, left, right = random_problem(2, 6, 2, seed=4)
    left[3, 0, 1] = torch.nan
    scores = bilinear_scores(preconditioned, left, right)
    assert bool(scores[:, 3].isnan().all()) and int(scores.isnan().sum()) == 2


def stable_sort(scores, k, largest):
    """The k best of a whole score matrix, ties to the lower row: what the running top-k must equal."""
    values, indices = scores.sort(dim=1, descending=largest, stable=True)
    return values[:, :k], indices[:, :k]


def running(scores, k, largest, splits):
    best, start = RunningTopK(len(scores), k, largest), 0
    for size in splits:
        best.update(scores[:, start : start + size], start)
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
    best.update(torch.empty(3, 0), 0)
    assert best.scores.shape == (3, 0) and best.indices.shape == (3, 0)


def test_rows_are_counted_from_the_first_row_given():
    best = RunningTopK(1, 2)
    best.update(torch.tensor([[1.0, 9, 3]]), 1000)
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


@pytest.mark.parametrize("block_numbers", [1, 50, 1 << 20])
@pytest.mark.parametrize("queries, count", [(3, 11), (1, 1), (0, 4), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dense_scores_equal_the_double_loop(monkeypatch, dtype, queries, count, block_numbers):
    monkeypatch.setattr(scoring, "_BLOCK_NUMBERS", block_numbers)
    preconditioned, *_ = random_problem(queries, count, 1)
    stored = random_problem(count, 1, 1, seed=1)[0].to(dtype)
    expected = torch.zeros(queries, count, dtype=torch.float64)
    for q in range(queries):
        for i in range(count):
            expected[q, i] = sum((preconditioned[q, r] * stored[i, r].double()).sum() for r in range(5))
    scores = dense_scores(preconditioned, stored)
    assert scores.dtype == torch.float64 and scores.shape == (queries, count)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
