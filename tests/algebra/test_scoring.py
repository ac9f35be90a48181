"""Every way to multiply, against double loops in float64; the codecs' own paths are tested with the codecs."""

import pytest
import torch

from lorif_hf.algebra import scoring
from lorif_hf.algebra.scoring import QueryGroup, Workspace, add_scores, rows_per_block


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(queries, count, pairs, d1=5, d2=7, seed=0):
    """Queries (Q, d1, d2), left (n, c, d1), right (n, c, d2)."""
    return (
        random(queries, d1, d2, seed=seed),
        random(count, pairs, d1, seed=seed + 1),
        random(count, pairs, d2, seed=seed + 2),
    )


def scored(group, queries, left, right=None, scales=None):
    """All scores of one group, block by block as a codec goes."""
    scores, workspace = torch.zeros(queries, len(left), dtype=left.dtype), Workspace()
    step = rows_per_block(None if right is None else left.shape[1], left.shape[1], left.shape[2])
    for start in range(0, len(left), step):
        rows = slice(start, start + step)
        sides = left[rows], None if right is None else right[rows], None if scales is None else scales[rows]
        add_scores(scores[:, rows], group, *sides, workspace)
    return scores


def whole(matrices):
    return QueryGroup(torch.arange(len(matrices)), matrices)


def double_loop(matrices, left, right, scales=None):
    """s(q, i) = sum_j u_ij^T Q~_q v_ij, one pair at a time in float64."""
    scores = torch.zeros(len(matrices), len(left), dtype=torch.float64)
    for q, query in enumerate(matrices.double()):
        for i in range(len(left)):
            for j in range(left.shape[1]):
                product = left[i, j].double() @ query @ right[i, j].double()
                scores[q, i] += product if scales is None else product * scales[i, j].double()
    return scores


SIZES = [(3, 11, 2), (1, 11, 1), (3, 1, 1), (1, 1, 5), (0, 4, 1), (2, 0, 3), (30, 9, 3)]  # the last: rebuilt gradients
small_blocks = pytest.mark.parametrize("block_numbers", [1, 50, 1 << 20])


@pytest.mark.parametrize("queries, count, pairs", SIZES)
@pytest.mark.parametrize("scaled", [False, True])
@small_blocks
def test_scores_equal_the_double_loop(monkeypatch, queries, count, pairs, scaled, block_numbers):
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
    matrices, left, right = problem(queries, count, pairs)
    scales = random(count, pairs, seed=9) if scaled else None
    scores = scored(whole(matrices), queries, left, right, scales)
    torch.testing.assert_close(scores, double_loop(matrices, left, right, scales), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("queries, count, pairs", SIZES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rank", [1, 4])
@small_blocks
def test_scores_of_thin_queries_equal_the_double_loop(monkeypatch, queries, count, pairs, scaled, rank, block_numbers):
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
    _, left, right = problem(queries, count, pairs)
    thin = random(queries, rank, 5, seed=7), random(queries, rank, 7, seed=8)
    group = QueryGroup(torch.arange(queries), *thin)
    scales = random(count, pairs, seed=9) if scaled else None
    expected = double_loop(thin[0].mT @ thin[1], left, right, scales)
    assert torch.equal(group.matrices(), thin[0].mT @ thin[1])
    scores = scored(group, queries, left, right, scales)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("d1, d2", [(1, 1), (1, 6), (6, 1), (4, 4)])
def test_scores_equal_the_inner_product_with_the_reconstructed_gradients(d1, d2):
    matrices, left, right = problem(4, 9, 1, d1, d2, seed=1)
    gradients = torch.einsum("icr,ick->irk", left, right)
    expected = matrices.flatten(1) @ gradients.flatten(1).T
    torch.testing.assert_close(scored(whole(matrices), 4, left, right), expected)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_tiny_and_huge_queries_keep_their_digits(scale):
    matrices, left, right = problem(2, 6, 1, seed=3)
    scores = scored(whole((matrices * scale).float()), 2, left.float(), right.float()).double() / scale
    torch.testing.assert_close(scores, double_loop(matrices, left, right), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [2, 30], ids=["products", "rebuilt"])
def test_nan_factors_spoil_their_own_row_only(queries):
    matrices, left, right = problem(queries, 6, 2, seed=4)
    left[3, 1, 0] = torch.nan
    scores = scored(whole(matrices), queries, left, right)
    assert bool(scores[:, 3].isnan().all()) and int(scores.isnan().sum()) == queries


@small_blocks
@pytest.mark.parametrize("queries, count", [(3, 11), (1, 1), (0, 4), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("thin", [False, True])
def test_scores_of_gradients_stored_whole_equal_the_double_loop(
    monkeypatch, dtype, queries, count, thin, block_numbers
):
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
    stored = random(count, 5, 7, seed=1).to(dtype)
    form = (random(queries, 2, 5), random(queries, 2, 7, seed=2)) if thin else (random(queries, 5, 7),)
    group = QueryGroup(torch.arange(queries), *(side.to(dtype) for side in form))
    expected = torch.zeros(queries, count, dtype=torch.float64)
    for q, query in enumerate(group.matrices().double()):
        for i in range(count):
            expected[q, i] = sum((query[r] * stored[i, r].double()).sum() for r in range(5))
    scores = scored(group, queries, stored)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dense", [False, True])
def test_groups_add_to_the_scores_of_their_own_queries(dense):
    matrices, left, right = problem(5, 8, 2)
    stored = (random(8, 5, 7, seed=6), None) if dense else (left, right)
    numbers = torch.tensor([0, 3, 4])
    scores = torch.ones(5, 8, dtype=torch.float64)
    add_scores(scores, QueryGroup(numbers, matrices[numbers]), *stored, None, Workspace())
    expected = scored(whole(matrices), 5, *stored) + 1
    torch.testing.assert_close(scores[numbers], expected[numbers], rtol=1e-12, atol=1e-12)
    assert torch.equal(scores[[1, 2]], torch.ones(2, 8, dtype=torch.float64))


def test_examples_beyond_the_scores_only_fill_up():
    matrices, left, right = problem(3, 8, 2)
    scores = torch.zeros(3, 5, dtype=torch.float64)
    add_scores(scores, whole(matrices), left, right, None, Workspace())
    torch.testing.assert_close(scores, double_loop(matrices, left[:5], right[:5]), rtol=1e-12, atol=1e-12)


def test_a_block_holds_what_fits_a_buffer_and_never_less_than_the_rows_that_are_multiplied_together():
    assert rows_per_block(1, 100, 156) == (1 << 20) // 256
    assert rows_per_block(3, 100, 156) == (1 << 20) // (3 * 256) // 64 * 64
    assert rows_per_block(None, 256, 256) == 16 and rows_per_block(None, 10**4, 10**4) == 16
    assert rows_per_block(8, 10**5, 10**5) == 64


def test_a_workspace_gives_the_same_memory_again_and_more_where_more_is_asked_for():
    workspace = Workspace()
    first = workspace.take("sums", 4, 6)
    assert first.shape == (4, 6) and first.is_contiguous() and bool((first == 0).all())
    assert workspace.take("sums", 4, 6) is first
    smaller = workspace.take("sums", 2, 3)
    assert smaller.shape == (2, 3) and smaller.data_ptr() == first.data_ptr()
    assert workspace.take("sums", 9, 9).shape == (9, 9)
    assert workspace.take("sums", 2, dtype=torch.float64).dtype == torch.float64
    assert workspace.take("images", 4, 6).data_ptr() != first.data_ptr()
