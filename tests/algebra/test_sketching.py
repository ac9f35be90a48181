"""The sketches against dense float64."""

import pytest
import torch
from spectra import COLUMNS, DIM, ROWS, gradients_of, held, random_factors

from lorif_hf.algebra import sketching
from lorif_hf.algebra.gradients import StoredGradients
from lorif_hf.algebra.sketching import nystroem_eigenpairs


def sketch(stored, rank, **more):
    """A sketch of three columns for each eigenpair."""
    return nystroem_eigenpairs(stored, rank, min(stored.dim, 3 * rank), **more)


@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("numbers", [1, 700, 1 << 22])
def test_eigenpairs_of_a_decaying_spectrum_are_found(rank, numbers):
    left, right = random_factors(60, rank or 2, decay=0.5)
    gradients = gradients_of(left, right)
    found = sketch(held(left, right, 25) if rank else held(left @ right.mT, None, 25), 8, block_size=numbers)
    expected = torch.linalg.eigvalsh(gradients.T @ gradients).flip(0)[:8]
    torch.testing.assert_close(found.values, expected, rtol=5e-2, atol=0)
    torch.testing.assert_close(found.values[:4], expected[:4], rtol=5e-3, atol=0)
    assert found.trace == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    vectors = found.vectors.double()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(8, dtype=torch.float64), atol=1e-3, rtol=0)
    captured = float((gradients @ vectors).square().sum())
    assert captured > 0.999 * float(expected.sum())


@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("width", [8, 20])
def test_the_one_pass_sketch_is_the_nystroem_approximation_at_its_test_vectors(rank, width):
    """A ~ Y (Omega^T Y)^+ Y^T with Y = A Omega, cut to rank r, in dense float64."""
    left, right = random_factors(60, rank or 2, decay=0.8)
    gradients = gradients_of(left, right)
    stored = held(left, right, 25) if rank else held(left @ right.mT, None, 25)
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(d, width, generator=generator).double() for d in (ROWS, COLUMNS))
    omega = torch.stack([torch.kron(a[:, k], b[:, k]) for k in range(width)], dim=1)
    image = gradients.T @ (gradients @ omega)
    values, vectors = torch.linalg.eigh(image @ torch.linalg.pinv(omega.T @ image, hermitian=True) @ image.T)
    expected = vectors[:, -8:] * values[-8:] @ vectors[:, -8:].T
    found = nystroem_eigenpairs(stored, 8, width, seed=3)
    rebuilt = found.vectors.double() * found.values @ found.vectors.double().T
    assert float((rebuilt - expected).norm() / expected.norm()) < 1e-3


def flat_factors():
    """A spectrum so flat that it matters how a sketch is made."""
    return random_factors(500, decay=0.9, rows=16, columns=20)


def share(found, gradients):
    best = torch.linalg.eigvalsh(gradients.T @ gradients).flip(0)[: len(found.values)].sum()
    return float((gradients @ torch.linalg.qr(found.vectors.double()).Q).square().sum() / best)


def test_wider_sketches_capture_more():
    left, right = flat_factors()
    stored, gradients = held(left, right), gradients_of(left, right)
    widths = [share(nystroem_eigenpairs(stored, 30, width), gradients) for width in (40, 60, 90, 320)]
    assert widths == sorted(widths)
    assert widths[0] > 0.8 and widths[2] > 0.95 and widths[3] > 1 - 1e-4


def test_test_vectors_that_are_products_lose_little_of_the_energy():
    left, right = flat_factors()
    stored, gradients = held(left, right), gradients_of(left, right)
    gram, losses = gradients.T @ gradients, []
    for seed in range(5):
        omega = torch.randn(320, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        image = gram @ omega
        root = torch.linalg.cholesky(omega.T @ image, upper=True)
        u, _, _ = torch.linalg.svd(torch.linalg.solve_triangular(root, image, upper=True, left=False))
        best = torch.linalg.eigvalsh(gram).flip(0)[:30].sum()
        plain = float((gradients @ u[:, :30]).square().sum() / best)
        losses.append(plain - share(nystroem_eigenpairs(stored, 30, 60, seed=seed), gradients))
    assert sum(losses) / 5 < 0.02


def test_values_of_the_one_pass_sketch_are_not_above_the_true_ones():
    left, right = flat_factors()
    gradients = gradients_of(left, right)
    found = nystroem_eigenpairs(held(left, right), 30, 60).values
    expected = torch.linalg.eigvalsh(gradients.T @ gradients).flip(0)[:30]
    assert bool((found <= expected * (1 + 1e-4)).all()) and bool((found >= 0).all())


def test_a_sketch_is_repeatable_and_leaves_the_global_generator_alone():
    stored = held(*random_factors(100), 40)
    state = torch.get_rng_state()
    first = sketch(stored, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = sketch(stored, 5)
    assert torch.equal(first.vectors, second.vectors) and torch.equal(first.values, second.values)
    assert not torch.equal(sketch(stored, 5, seed=1).vectors, first.vectors)


def test_the_shards_are_read_once():
    left, right = random_factors(50)
    begun = []
    stored = StoredGradients(lambda rows: begun.append(1) or iter([(left, right)]), 50, ROWS, COLUMNS, 1)
    nystroem_eigenpairs(stored, 5, 15)
    assert len(begun) == 1


@pytest.mark.parametrize("columns", [(1, 1), (1, 12), (12, 1), (2, 2)])
def test_thin_gradients_are_sketched_at_full_width(columns):
    left, right = random_factors(30, rows=columns[0], columns=columns[1], decay=0.9)
    gradients, dim = gradients_of(left, right), columns[0] * columns[1]
    found = nystroem_eigenpairs(held(left, right), dim, dim)
    rebuilt = found.vectors.double() * found.values @ found.vectors.double().T
    assert float((rebuilt - gradients.T @ gradients).norm()) < 1e-3 * found.trace


def test_a_core_that_is_not_positive_gets_a_larger_shift(monkeypatch):
    left, right = (factor.expand(40, -1, -1) for factor in random_factors(1))
    real, failed = torch.linalg.cholesky_ex, []

    def fails_at_first(matrix, **more):
        failed.append(1)
        root, info = real(matrix, **more)
        return root, torch.ones_like(info) if len(failed) < 3 else info

    monkeypatch.setattr(sketching.torch.linalg, "cholesky_ex", fails_at_first)
    found = nystroem_eigenpairs(held(left, right), 4, 14)
    assert len(failed) >= 3
    assert float(found.values[0]) == pytest.approx(found.trace, rel=1e-3)
    assert float(found.values[1:].sum()) < 1e-3 * found.trace and found.vectors.shape == (DIM, 4)
