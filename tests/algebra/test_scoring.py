import pytest
import torch

from lorif_hf.algebra import scoring
from lorif_hf.algebra.scoring import bilinear_scores, dense_scores


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
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
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


@pytest.mark.parametrize("block_numbers", [1, 50, 1 << 20])
@pytest.mark.parametrize("queries, count", [(3, 11), (1, 1), (0, 4), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dense_scores_equal_the_double_loop(monkeypatch, dtype, queries, count, block_numbers):
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
    preconditioned, *_ = random_problem(queries, count, 1)
    stored = random_problem(count, 1, 1, seed=1)[0].to(dtype)
    expected = torch.zeros(queries, count, dtype=torch.float64)
    for q in range(queries):
        for i in range(count):
            expected[q, i] = sum((preconditioned[q, r] * stored[i, r].double()).sum() for r in range(5))
    scores = dense_scores(preconditioned, stored)
    assert scores.dtype == torch.float64 and scores.shape == (queries, count)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
