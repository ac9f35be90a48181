import pytest
import torch
from spectra import COLUMNS, DIM, ROWS, gradients_of, held, random_factors

from lorif_hf.algebra.gradients import StoredGradients, expand, factor_squared_norms


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", [1, 3 * DIM + 5, 10**9])
def test_matrices_are_the_products_in_blocks_of_bounded_size(numbers, dtype, rank):
    left, right = (factor.to(dtype) for factor in random_factors(20, rank))
    blocks = list(held(left, right, 0, 6).matrices(numbers))
    assert all(block.dtype == torch.float32 and len(block) <= max(1, numbers // DIM) for block in blocks)
    torch.testing.assert_close(torch.cat(blocks).double(), gradients_of(left, right), rtol=1e-5, atol=1e-7)
    dense = left.float() @ right.float().mT
    assert torch.equal(torch.cat(list(held(dense, None, 5).matrices(numbers))), dense.flatten(1))


def test_a_source_is_told_how_many_rows_to_give_and_may_give_more():
    asked = []
    left, right = random_factors(10, 2)
    stored = StoredGradients(lambda rows: asked.append(rows) or iter([(left, right)]), 10, ROWS, COLUMNS, 2)
    assert [len(one) for one, _ in stored.factors(4)] == [4, 4, 2] and asked == [4]
    assert (stored.dim, stored.size) == (DIM, 2 * (ROWS + COLUMNS))
    assert held(left @ right.mT, None).size == DIM


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 5), slice(5, 99), slice(3, 3)])
def test_rows_of_the_gradients_are_expanded_alone(rows, rank):
    left, right = random_factors(7, rank)
    expected = (left @ right.mT)[:, rows].flatten(1)
    torch.testing.assert_close(expand(left, right, rows), expected)
    assert torch.equal(expand(left @ right.mT, None, rows), expected)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_come_from_the_factors(scale):
    left, right = random_factors(9, 3)
    left[2] = 0
    expected = gradients_of(left * scale, right).square().sum(dim=1)
    torch.testing.assert_close(factor_squared_norms(left * scale, right), expected, rtol=1e-9, atol=0)
    dense = (left * scale) @ right.mT
    torch.testing.assert_close(factor_squared_norms(dense, None), dense.double().square().sum(dim=(1, 2)))
    assert factor_squared_norms(left[:0], right[:0]).shape == factor_squared_norms(dense[:0], None).shape == (0,)
