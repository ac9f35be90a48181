from itertools import pairwise

import pytest
import torch

from lorif_hf.algebra import curvature
from lorif_hf.algebra.curvature import (
    dual_eigenpairs,
    fit,
    gram_eigenpairs,
    randomized_eigenpairs,
    self_influence,
    spectral_solve,
    woodbury_solve,
)
from lorif_hf.algebra.scoring import bilinear_scores


ROWS, COLUMNS = 6, 8
DIM = ROWS * COLUMNS


def random_factors(count, rank=1, *, decay=0.4, scale=1.0, seed=0, rows=ROWS, columns=COLUMNS):
    """Stored factors whose gradients' second moment has a decaying spectrum, as float32."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(count, rows, rank, generator=generator) * decay ** torch.arange(rows).view(1, -1, 1)
    right = torch.randn(count, columns, rank, generator=generator) * decay ** torch.arange(columns).view(1, -1, 1)
    return scale * left, right


def in_blocks(left, right, *sizes):
    """The factors as blocks of these sizes, the rest in a last one; given anew for each pass."""
    edges = [0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist(), len(left)]
    return lambda: ((left[a:b], right[a:b]) for a, b in pairwise(edges))


def gradients_of(left, right):
    """G, (n, D) in float64."""
    return torch.einsum("nrc,nkc->nrk", left.double(), right.double()).flatten(1)


def truncated_hessian(gradients, rank, damping):
    """H of the top `rank` eigenpairs of G^T G, as a D x D float64 matrix; lambda = damping * trace / D."""
    _, s, vh = torch.linalg.svd(gradients, full_matrices=False)
    kept = vh[:rank].T * s[:rank].square() @ vh[:rank]
    return kept + damping * float(gradients.square().sum()) / DIM * torch.eye(DIM, dtype=torch.float64)


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("sizes", [(), (1, 0, 7)], ids=["one block", "several blocks"])
@pytest.mark.parametrize("rank", [1, 12])
@pytest.mark.parametrize("count", [30, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("path", ["exact", "streamed", "gram", "dual"])
def test_every_way_to_the_curvature_gives_the_same_scores(monkeypatch, path, count, rank, sizes):
    left, right = random_factors(count, rank=2)
    queries = gradients_of(*random_factors(5, seed=1))
    blocks, gradients = in_blocks(left, right, *sizes), gradients_of(left, right)
    if path in ("exact", "streamed"):
        monkeypatch.setattr(curvature, "EXACT_LIMIT", 4096 if path == "exact" else 0)
        fitted = fit(blocks, count=count, dim=DIM, rank=rank, damping=0.5)
        vectors, values, damping, trace = fitted.eigenvectors, fitted.eigenvalues, fitted.damping, fitted.trace
        assert vectors.dtype == values.dtype == torch.float32
    elif path == "gram":
        vectors, values, trace = gram_eigenpairs(blocks, dim=DIM, rank=rank)
    else:
        vectors, values, trace = dual_eigenpairs(blocks, count=count, dim=DIM, rank=rank)
    if path in ("gram", "dual"):
        damping = 0.5 * trace / DIM

    assert vectors.shape == (DIM, rank) and values.shape == (rank,)
    assert trace == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    assert damping == pytest.approx(0.5 * trace / DIM, rel=1e-9)
    expected = queries @ torch.linalg.solve(truncated_hessian(gradients, rank, 0.5), gradients.T)
    solved = woodbury_solve(queries.float(), vectors.float(), values.float(), damping)
    assert relative_error(bilinear_scores(solved.view(-1, ROWS, COLUMNS), left, right), expected) < 1e-4


@pytest.mark.parametrize("path", ["gram", "dual", "streamed"])
def test_eigenpairs_are_those_of_the_sum_of_outer_products(path):
    left, right = random_factors(60, decay=0.6)
    blocks, gradients = in_blocks(left, right, 25), gradients_of(left, right)
    if path == "gram":
        vectors, values, _ = gram_eigenpairs(blocks, dim=DIM, rank=8)
    elif path == "dual":
        vectors, values, _ = dual_eigenpairs(blocks, count=60, dim=DIM, rank=8)
    else:
        vectors, values, _ = randomized_eigenpairs(blocks, dim=DIM, rank=8)
    expected = torch.linalg.eigvalsh(gradients.T @ gradients).flip(0)[:8]
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(8, dtype=vectors.dtype), atol=1e-4, rtol=0)
    torch.testing.assert_close(gradients.T @ (gradients @ vectors), vectors * values, rtol=0, atol=1e-3 * expected[0])


@pytest.mark.parametrize(
    "limit, count, way",
    [(4096, 100, "gram"), (4096, 20, "dual"), (DIM, 100, "gram"), (20, 20, "dual"), (DIM - 1, 100, "randomized")],
)
def test_the_smaller_exact_matrix_is_taken_where_it_fits(monkeypatch, limit, count, way):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    taken = []
    for name in ("gram", "dual", "randomized"):
        real = getattr(curvature, f"{name}_eigenpairs")
        monkeypatch.setattr(
            curvature, f"{name}_eigenpairs", lambda *a, name=name, real=real, **k: taken.append(name) or real(*a, **k)
        )
    fit(in_blocks(*random_factors(count)), count=count, dim=DIM, rank=4, damping=0.5)
    assert taken == [way]


@pytest.mark.parametrize("limit", [0, 4096], ids=["streamed", "exact"])
@pytest.mark.parametrize("count, rank, kept", [(9, 500, 9), (200, 500, DIM), (9, 4, 4), (1, 1, 1)])
def test_the_rank_is_capped_by_the_rows_and_by_the_dimension(monkeypatch, limit, count, rank, kept):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    fitted = fit(in_blocks(*random_factors(count, decay=0.9)), count=count, dim=DIM, rank=rank, damping=0.5)
    assert fitted.eigenvectors.shape == (DIM, kept) and fitted.eigenvalues.shape == (kept,)


@pytest.mark.parametrize("limit", [0, 4096], ids=["streamed", "exact"])
@pytest.mark.parametrize("count", [5, 100], ids=["N < D", "N > D"])
def test_a_layer_without_any_gradient_scores_zero(monkeypatch, limit, count):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    left, right = torch.zeros(count, ROWS, 1), torch.ones(count, COLUMNS, 1)
    fitted = fit(in_blocks(left, right), count=count, dim=DIM, rank=4, damping=0.5)
    assert fitted.damping == 1.0 and fitted.trace == 0.0
    queries = gradients_of(*random_factors(2)).float()
    solved = woodbury_solve(queries, fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
    assert bool(solved.isfinite().all())
    assert torch.equal(self_influence(left, right, fitted), torch.zeros(count))


@pytest.mark.parametrize("limit", [0, 4096], ids=["streamed", "exact"])
@pytest.mark.parametrize("count", [6, 100], ids=["N < D", "N > D"])
def test_rows_that_are_all_the_same_have_one_eigenpair(monkeypatch, limit, count):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    left, right = (factor.expand(count, -1, -1) for factor in random_factors(1))
    fitted = fit(in_blocks(left, right), count=count, dim=DIM, rank=DIM, damping=0.5)
    gradients = gradients_of(left, right)
    expected = (gradients @ torch.linalg.solve(truncated_hessian(gradients, DIM, 0.5), gradients.T)).diagonal()
    assert relative_error(self_influence(left, right, fitted), expected) < 1e-3
    assert float(fitted.eigenvalues[1:].sum()) <= 1e-5 * float(fitted.eigenvalues[0])
    assert bool((fitted.eigenvalues >= 0).all())


@pytest.mark.parametrize("limit", [0, 4096], ids=["streamed", "exact"])
@pytest.mark.parametrize("count", [30, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_self_influence_does_not_depend_on_the_gradients_unit(monkeypatch, scale, count, limit):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    left, right = random_factors(count, scale=scale)
    fitted = fit(in_blocks(left, right), count=count, dim=DIM, rank=12, damping=0.5)
    gradients = gradients_of(left / scale, right)
    expected = (gradients @ torch.linalg.solve(truncated_hessian(gradients, 12, 0.5), gradients.T)).diagonal()
    assert relative_error(self_influence(left, right, fitted), expected) < 1e-3


def test_small_blocks_give_the_same_curvature(monkeypatch):
    left, right = random_factors(50)
    whole = fit(in_blocks(left, right), count=50, dim=DIM, rank=6, damping=0.5)
    influence = self_influence(left, right, whole)
    monkeypatch.setattr(curvature, "_BLOCK_NUMBERS", 7 * DIM)
    pieces = fit(in_blocks(left, right), count=50, dim=DIM, rank=6, damping=0.5)
    torch.testing.assert_close(pieces.eigenvalues, whole.eigenvalues, rtol=1e-5, atol=0)
    assert pieces.trace == pytest.approx(whole.trace)
    torch.testing.assert_close(self_influence(left, right, whole), influence, rtol=1e-5, atol=1e-7)


def test_the_streamed_fit_is_repeatable_and_leaves_the_global_generator_alone():
    blocks = in_blocks(*random_factors(100), 40)
    state = torch.get_rng_state()
    first = randomized_eigenpairs(blocks, dim=DIM, rank=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = randomized_eigenpairs(blocks, dim=DIM, rank=5)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and first[2] == second[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("limit, count", [(0, 60), (4096, 60), (4096, 30)], ids=["streamed", "gram", "dual"])
def test_stored_dtypes_are_fitted_without_further_rounding(monkeypatch, limit, count, dtype):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    left, right = (factor.to(dtype) for factor in random_factors(count))
    gradients = gradients_of(left, right)
    fitted = fit(in_blocks(left, right), count=count, dim=DIM, rank=10, damping=0.1)
    expected = (gradients @ torch.linalg.solve(truncated_hessian(gradients, 10, 0.1), gradients.T)).diagonal()
    assert relative_error(self_influence(left, right, fitted), expected) < 1e-3


@pytest.mark.parametrize("queries, rank", [(3, 1), (3, 12), (1, 47), (0, 4), (2, 0)])
def test_woodbury_equals_the_inverse_of_the_truncated_hessian(queries, rank):
    training, asked = gradients_of(*random_factors(60)), gradients_of(*random_factors(queries, seed=1))
    _, s, vh = torch.linalg.svd(training, full_matrices=False)
    hessian = vh[:rank].T * s[:rank].square() @ vh[:rank] + 0.3 * torch.eye(DIM, dtype=torch.float64)
    solved = woodbury_solve(asked, vh[:rank].T, s[:rank].square(), 0.3)
    torch.testing.assert_close(solved, torch.linalg.solve(hessian, asked.T).T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [1e-2, 1.0, 100.0])
def test_woodbury_with_every_eigenpair_equals_the_exact_inverse(damping):
    training, asked = gradients_of(*random_factors(80, decay=0.8)), gradients_of(*random_factors(4, seed=1, decay=0.8))
    hessian = training.T @ training
    values, vectors = torch.linalg.eigh(hessian)
    exact = torch.linalg.solve(hessian + damping * torch.eye(DIM, dtype=torch.float64), asked.T).T
    assert relative_error(woodbury_solve(asked, vectors, values, damping), exact) < 1e-4
    asked, vectors, values = asked.float(), vectors.float(), values.float()
    assert relative_error(woodbury_solve(asked, vectors, values, damping), exact) < 1e-2


@pytest.mark.parametrize("rank", [1, 12, DIM])
@pytest.mark.parametrize("factor_rank", [1, 3])
@pytest.mark.parametrize("damping", [0.5, 1e-4])
def test_self_influence_equals_g_transposed_inverse_hessian_g(rank, factor_rank, damping):
    left, right = random_factors(100, factor_rank, decay=0.8)
    fitted = fit(in_blocks(left, right), count=100, dim=DIM, rank=rank, damping=damping)
    gradients, found = gradients_of(left, right), self_influence(left, right, fitted)
    hessian = truncated_hessian(gradients, rank, damping)
    expected = torch.stack([g @ torch.linalg.solve(hessian, g) for g in gradients])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert bool((found >= 0).all())


def test_self_influence_of_no_row_is_empty():
    fitted = fit(in_blocks(*random_factors(20)), count=20, dim=DIM, rank=4, damping=0.5)
    assert self_influence(torch.empty(0, ROWS, 1), torch.empty(0, COLUMNS, 1), fitted).shape == (0,)


def test_gradients_too_small_for_float32_score_zero_instead_of_nan():
    left, right = torch.randn(40, 4, 1) * 1e-25, torch.randn(40, 5, 1)
    fitted = fit(lambda: iter([(left, right)]), count=40, dim=20, rank=10, damping=0.5)
    assert fitted.damping == 1.0
    assert torch.equal(self_influence(left, right, fitted), torch.zeros(40))


@pytest.mark.parametrize("count", [6, 30])
def test_spectral_solve_scores_as_the_dense_inverse_does(count):
    gradients = torch.randn(count, 12, dtype=torch.float64)
    queries = torch.randn(4, 12, dtype=torch.float64)
    gram, damping = gradients.T @ gradients, 1e-4
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    kept = eigenvalues > 1e-9
    expected = queries @ torch.linalg.inv(gram + damping * torch.eye(12, dtype=torch.float64)) @ gradients.T
    solved = spectral_solve(queries, eigenvectors[:, kept], eigenvalues[kept], damping)
    torch.testing.assert_close(solved @ gradients.T, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rank", [5, None])
@pytest.mark.parametrize("count", [30, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("limit", [0, 4096], ids=["streamed", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_blocks_are_fitted_like_factors_of_full_rank(monkeypatch, dtype, limit, count, rank):
    monkeypatch.setattr(curvature, "EXACT_LIMIT", limit)
    matrices = torch.einsum("nrc,nkc->nrk", *random_factors(count, rank=2)).to(dtype)
    edges = [0, 1, 1, 17, count]
    fitted = fit(
        lambda: ((matrices[a:b], None) for a, b in pairwise(edges)), count=count, dim=DIM, rank=rank, damping=0.5
    )
    gradients = matrices.double().flatten(1)
    hessian = truncated_hessian(gradients, rank or DIM, 0.5)
    assert fitted.trace == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    expected = (gradients @ torch.linalg.solve(hessian, gradients.T)).diagonal()
    assert relative_error(self_influence(matrices, None, fitted), expected) < 1e-3
    solved = woodbury_solve(gradients[:3].float(), fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
    assert relative_error(solved, torch.linalg.solve(hessian, gradients[:3].T).T) < 1e-3


def test_self_influence_of_no_dense_row_is_empty():
    fitted = fit(in_blocks(*random_factors(20)), count=20, dim=DIM, rank=4, damping=0.5)
    assert self_influence(torch.empty(0, ROWS, COLUMNS), None, fitted).shape == (0,)


@pytest.mark.parametrize("count", [40, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("damping", [1e-4, 1e-6])
def test_scores_keep_their_digits_where_the_damping_is_far_below_the_eigenvalues(damping, count):
    """As in TRAK: what float32 leaves of a query inside the kept space must not be divided by lambda."""
    gradients = gradients_of(*random_factors(count, rank=6, decay=0.8))
    blocks = lambda: iter([(gradients.float().view(-1, ROWS, COLUMNS), None)])  # noqa: E731
    fitted = fit(blocks, count=count, dim=DIM, rank=None, damping=damping)
    hessian = gradients.T @ gradients + fitted.damping * torch.eye(DIM, dtype=torch.float64)
    expected = gradients @ torch.linalg.solve(hessian, gradients.T)
    solved = woodbury_solve(gradients.float(), fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
    assert relative_error(solved @ gradients.float().T, expected) < 1e-3
