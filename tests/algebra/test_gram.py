"""The exact matrices against dense float64, and the iteration on them against the whole decomposition."""

import pytest
import torch
from spectra import DIM, gradients_of, held, random_factors

from lorif_hf.algebra import gram
from lorif_hf.algebra.gram import dual_eigenpairs, folds, gram_eigenpairs, iterates, top_eigenpairs


METHODS = [gram_eigenpairs, dual_eigenpairs]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [None, 1, 2, 4])
@pytest.mark.parametrize("numbers", [1, 500, 1 << 22])
def test_eigenpairs_are_those_of_the_sum_of_outer_products(method, rank, numbers):
    left, right = random_factors(60, rank or 2, decay=0.6)
    gradients = gradients_of(left, right)
    stored = held(left, right, 25) if rank else held((left @ right.mT), None, 25)
    found = method(stored, 8, numbers)
    expected = torch.linalg.eigvalsh(gradients.T @ gradients).flip(0)[:8]
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=0)
    assert found.trace == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    vectors = found.vectors.double()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)
    residual = gradients.T @ (gradients @ vectors) - vectors * found.values
    assert float(residual.abs().max()) < 1e-3 * float(expected[0])


@pytest.mark.parametrize("rows, columns, folded", [(6, 8, True), (1, 1, True), (5, 5, True), (1, 30, False)])
def test_the_gram_matrix_of_rank_one_factors_is_folded_where_that_is_less(rows, columns, folded):
    stored = held(*random_factors(50, rows=rows, columns=columns, decay=0.9), 13)
    assert folds(stored) == folded
    gradients = gradients_of(*random_factors(50, rows=rows, columns=columns, decay=0.9))
    expected = gradients.T @ gradients
    for found in (gram._folded_gram(stored, 1), gram._folded_gram(stored, 1 << 20), gram._gram(stored, 1 << 20)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_only_factors_of_rank_one_are_folded():
    left, right = random_factors(9, 2)
    assert not folds(held(left, right)) and not folds(held(left @ right.mT, None))


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("rank", [None, 1, 2, 5])
def test_the_dual_gives_the_shares_of_every_row(rank, count):
    left, right = random_factors(count, rank or 3, decay=0.8)
    left[count // 2] = 0
    gradients = gradients_of(left, right)
    found = dual_eigenpairs(held(left, right) if rank else held(left @ right.mT, None), count, 300)
    expected = (gradients @ found.vectors.double()).square()
    torch.testing.assert_close(found.row_squares, expected, rtol=0, atol=1e-5 * float(gradients.square().sum()))
    torch.testing.assert_close(found.row_norms, gradients.square().sum(dim=1), rtol=1e-6, atol=0)


def test_the_dual_drops_directions_that_are_rounding_noise():
    left, right = random_factors(3, decay=0.9)
    found = dual_eigenpairs(held(torch.cat([left] * 4), torch.cat([right] * 4)), 12)
    assert found.vectors.shape == (DIM, 3) and found.row_squares.shape == (12, 3)


def test_weak_directions_of_the_dual_keep_their_digits():
    """Eigenvalues of the kernel down to 1e-9 of the largest: in float32 their eigenvectors would be noise."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(DIM, 10, generator=generator, dtype=torch.float64)).Q
    mixing = torch.linalg.qr(torch.randn(30, 10, generator=generator, dtype=torch.float64)).Q
    gradients = (mixing * torch.logspace(0, -4.3, 10, dtype=torch.float64)) @ basis.T
    stored = held(gradients.float().view(30, 6, 8), None)
    exact = torch.linalg.svd(gradients.float().double(), full_matrices=False)[2][:10]
    found = dual_eigenpairs(stored, 10).vectors.double()
    assert float((found * exact.T).sum(dim=0).abs().min()) > 1 - 1e-6
    assert float((found.T @ found - torch.eye(10, dtype=torch.float64)).abs().max()) < 1e-5


@pytest.mark.parametrize("rank", [1, 40])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 1e40])
def test_the_iteration_finds_what_the_whole_decomposition_finds(rank, scale):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(1100, 1100, generator=generator, dtype=torch.float64)).Q
    spectrum = 0.9 ** torch.arange(1100, dtype=torch.float64)
    matrix = basis * spectrum @ basis.T * scale
    state = torch.get_rng_state()
    assert iterates(1100, rank)
    values, vectors, products = top_eigenpairs(matrix, rank)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.testing.assert_close(values / scale, spectrum[:rank], rtol=1e-5, atol=0)
    assert float((vectors * basis[:, :rank]).sum(dim=0).abs().min()) > 1 - 1e-4
    torch.testing.assert_close(products / scale, matrix @ vectors / scale, rtol=0, atol=1e-12)
    again = top_eigenpairs(matrix, rank)
    assert all(torch.equal(*pair) for pair in zip((values, vectors, products), again, strict=True))


def test_a_flat_spectrum_is_captured_almost_whole_by_the_iteration():
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(1100, 1100, generator=generator, dtype=torch.float64)).Q
    spectrum = (1.0 + torch.arange(1100, dtype=torch.float64)) ** -0.5
    values, vectors, _ = top_eigenpairs(basis * spectrum @ basis.T, 100)
    assert 0.98 * float(spectrum[:100].sum()) < float(values.sum()) <= float(spectrum[:100].sum()) * (1 + 1e-9)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(100, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_matrix_of_zeros_has_zeros_for_eigenvalues():
    for size, rank in ((20, 3), (1100, 5)):
        values, vectors, products = top_eigenpairs(torch.zeros(size, size, dtype=torch.float64), rank)
        assert torch.equal(values, torch.zeros(rank, dtype=torch.float64)) and not bool(products.any())
        assert bool(vectors.isfinite().all())
