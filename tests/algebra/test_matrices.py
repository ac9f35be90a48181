"""Batches of matrices that are known by their products do as dense ones do."""

import pytest
import torch

from lorif_hf.algebra.matrices import (
    LowRankMatrices,
    dense,
    in_order,
    matrix_sizes,
    squared_norms,
    unit,
    weighted_sums,
)


@pytest.fixture
def low_rank():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(4, 9, 3, generator=generator), torch.randn(4, 7, 3, generator=generator)
    whole = (left.double() @ right.double().mT).square().sum(dim=(1, 2))
    return LowRankMatrices(left, right, whole)


@pytest.fixture
def whole(low_rank):
    """The same matrices, one product of vectors after the other."""
    matrices = torch.zeros(4, 9, 7)
    for row in range(4):
        for left, right in zip(low_rank.left[row].T, low_rank.right[row].T, strict=True):
            matrices[row] += torch.outer(left, right)
    return matrices


def test_low_rank_matrices_multiply_as_dense_ones(low_rank, whole):
    generator = torch.Generator().manual_seed(1)
    vectors, others = torch.randn(4, 7, 2, generator=generator), torch.randn(4, 9, 2, generator=generator)
    assert low_rank.shape == (4, 9, 7) and low_rank.mT.shape == (4, 7, 9) and len(low_rank) == 4
    torch.testing.assert_close(dense(low_rank), whole)
    torch.testing.assert_close(low_rank @ vectors, whole @ vectors)
    torch.testing.assert_close(low_rank.mT @ others, whole.mT @ others)
    assert dense(whole) is whole


def test_each_matrix_is_divided_by_its_own_number(low_rank, whole):
    sizes = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1)
    torch.testing.assert_close(dense(low_rank / sizes), whole / sizes)
    expected = low_rank.squares / torch.tensor([1, 4, 16, 64])
    torch.testing.assert_close((low_rank / sizes).squares, expected, rtol=1e-12, atol=0)


def test_batches_are_put_together_in_order_and_each_vector_stays_one_run_of_memory(low_rank, whole):
    both = LowRankMatrices.cat([low_rank, low_rank / torch.full((4, 1, 1), 2.0)])
    torch.testing.assert_close(dense(both), torch.cat([whole, whole / 2]))
    torch.testing.assert_close(both.squares, torch.cat([low_rank.squares, low_rank.squares / 4]))
    assert both.left.stride(1) == both.right.stride(1) == 1


def test_squared_norms_of_low_rank_matrices_are_what_they_carry(low_rank, whole):
    expected = torch.stack([matrix.double().square().sum() for matrix in whole])
    assert squared_norms(whole).dtype == squared_norms(low_rank).dtype == torch.float64
    torch.testing.assert_close(squared_norms(whole), expected, rtol=1e-6, atol=0)
    assert squared_norms(low_rank) is low_rank.squares


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sizes_bring_every_matrix_near_one_and_are_one_where_it_is_zero(low_rank, whole, scale):
    low_rank = low_rank / torch.full((4, 1, 1), 1 / scale)
    for matrices in (whole * scale, low_rank):
        sizes = matrix_sizes(matrices)
        assert sizes.shape == (4, 1, 1) and bool((sizes > 0).all())
        largest = dense(matrices / sizes).abs().amax(dim=(1, 2))
        assert bool(((largest > 0.05) & (largest <= 1 + 1e-6)).all())
    empty = LowRankMatrices(torch.zeros(2, 9, 3), torch.zeros(2, 7, 3), torch.zeros(2, dtype=torch.float64))
    for zero in (torch.zeros(2, 9, 7), empty):
        assert torch.equal(matrix_sizes(zero), torch.ones(2, 1, 1))
    assert matrix_sizes(torch.zeros(0, 9, 7)).shape == (0, 1, 1)


@pytest.mark.parametrize("dim", [1, (1, 2)], ids=str)
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_unit_vectors_have_length_one_and_zero_stays_zero(whole, dim, scale):
    given = whole * scale
    given[2] = 0
    norms = unit(given, dim).double().square().sum(dim=dim).sqrt()
    expected = torch.ones_like(norms)
    expected[2] = 0
    torch.testing.assert_close(norms, expected, rtol=1e-5, atol=0)


def test_batches_are_put_in_order(low_rank, whole):
    order = torch.tensor([2, 0, 3, 1])
    parts = [LowRankMatrices(low_rank.left[p], low_rank.right[p], low_rank.squares[p]) for p in ([0], [1, 2, 3])]
    found = in_order(parts, order)
    torch.testing.assert_close(dense(found), whole[order])
    torch.testing.assert_close(squared_norms(found), low_rank.squares[order])
    torch.testing.assert_close(in_order([whole[:3], whole[3:]], order), whole[order])


def test_the_squared_norms_of_a_product_are_exact(low_rank, whole):
    product = LowRankMatrices.product(low_rank.left, low_rank.right)
    torch.testing.assert_close(product.squares, whole.double().square().sum(dim=(1, 2)), rtol=1e-5, atol=0)
    assert LowRankMatrices.product(torch.zeros(2, 4, 1), torch.zeros(2, 3, 1)).squares.tolist() == [0, 0]


def test_batches_of_unlike_form_are_put_in_order_whole(low_rank, whole):
    wider = LowRankMatrices.product(torch.randn(2, 9, 5), torch.randn(2, 7, 5))
    formed = torch.randn(1, 9, 7)
    expected = torch.cat([whole, dense(wider), formed])
    order = torch.tensor([6, 4, 0, 1, 5, 2, 3])
    torch.testing.assert_close(in_order([low_rank, wider, formed], order), expected[order])
    torch.testing.assert_close(in_order([low_rank, wider], order[1:]), expected[order[1:]])


WEIGHTS = {
    "each by its own": [[2.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]],
    "pairs": [[1.0, -1.0, 0, 0], [0, 0, 1.0, -1.0]],
    "all": [[0.25, 0.25, 0.25, 0.25]],
    "pairs apart": [[1.0, 0, -1.0, 0], [0, 1.0, 0, -1.0]],
    "of unlike many": [[1.0, 0, 0, 0], [0, 1.0, 2.0, 3.0]],
    "five of four": [[1.0, 0, 0, 0]] * 5,
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("length", [1, 3])
def test_weighted_sums_are_those_of_the_whole_matrices(weights, length, request):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(4, 9, length, generator=generator), torch.randn(4, 7, length, generator=generator)
    weights = torch.tensor(weights)
    whole = left.double() @ right.double().mT
    expected = torch.zeros(len(weights), 9, 7, dtype=torch.float64)
    for number, row in enumerate(weights):
        for weight, matrix in zip(row, whole, strict=True):
            expected[number] += weight * matrix
    sums = weighted_sums(LowRankMatrices.product(left, right), weights)
    torch.testing.assert_close(dense(sums).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weighted_sums(whole.float(), weights).double(), expected, rtol=1e-5, atol=1e-5)
    kept = {"each by its own": True, "pairs": length == 1, "all": False}
    case = request.node.callspec.id
    assert isinstance(sums, LowRankMatrices) == next((v for k, v in kept.items() if case.endswith(k)), False)
