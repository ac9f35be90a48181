from dataclasses import replace

import pytest
import torch
from spectra import COLUMNS, DIM, ROWS, gradients_of, held, random_factors, relative_error, truncated_hessian

from lorif_hf.algebra import curvature
from lorif_hf.algebra.curvature import fit, self_influence, spectral_solve, woodbury_solve
from lorif_hf.algebra.planning import plan_method


METHODS = ["gram", "dual", "nystroem"]
LOST = {"nystroem": 5e-2}  # of one pass, at these ranks and spectra; the others are exact to rounding


def fitted_by(method, left, right, *sizes, rank, damping=0.5, block=None):
    stored = held(left, right, *sizes)
    rank = min(rank or stored.dim, stored.dim, stored.count)
    plan = plan_method(stored, rank, method, max_memory=1 << 40)
    return fit(stored, replace(plan, block=block or plan.block), damping=damping)


def expected_influence(gradients, rank, damping):
    return (gradients @ torch.linalg.solve(truncated_hessian(gradients, rank, damping), gradients.T)).diagonal()


@pytest.mark.parametrize("sizes", [(), (1, 0, 7)], ids=["one block", "several blocks"])
@pytest.mark.parametrize("rank", [1, 12])
@pytest.mark.parametrize("count", [30, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("factor_rank", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_the_curvature_gives_the_same_scores(method, factor_rank, count, rank, sizes):
    left, right = random_factors(count, factor_rank)
    queries, gradients = gradients_of(*random_factors(5, seed=1)), gradients_of(left, right)
    fitted = fitted_by(method, left, right, *sizes, rank=rank)
    vectors, values, damping = fitted.eigenvectors, fitted.eigenvalues, fitted.damping
    assert vectors.dtype == values.dtype == torch.float32
    assert vectors.shape == (DIM, rank) and values.shape == (rank,)
    assert fitted.trace == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    assert damping == pytest.approx(0.5 * fitted.trace / DIM, rel=1e-9)
    expected = queries @ torch.linalg.solve(truncated_hessian(gradients, rank, 0.5), gradients.T)
    solved = woodbury_solve(queries.float(), vectors, values, damping)
    assert relative_error(solved.double() @ gradients.T, expected) < LOST.get(method, 1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count, rank, kept", [(9, 500, 9), (200, 500, DIM), (9, 4, 4), (1, 1, 1)])
def test_the_rank_is_capped_by_the_rows_and_by_the_dimension(method, count, rank, kept):
    fitted = fitted_by(method, *random_factors(count, decay=0.9), rank=rank)
    assert fitted.eigenvectors.shape == (DIM, kept) and fitted.eigenvalues.shape == (kept,)
    assert bool((fitted.eigenvalues.diff() <= 0).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dense", [False, True], ids=["factors", "dense"])
@pytest.mark.parametrize("count", [5, 100], ids=["N < D", "N > D"])
def test_a_layer_without_any_gradient_scores_zero(method, count, dense):
    left, right = torch.zeros(count, ROWS, 1), torch.ones(count, COLUMNS, 1)
    left, right = (torch.zeros(count, ROWS, COLUMNS), None) if dense else (left, right)
    fitted = fitted_by(method, left, right, rank=4)
    assert fitted.damping == 1.0 and fitted.trace == 0.0
    queries = gradients_of(*random_factors(2)).float()
    solved = woodbury_solve(queries, fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
    assert bool(solved.isfinite().all())
    assert torch.equal(self_influence(left, right, fitted), torch.zeros(count))
    if fitted.self_influence is not None:
        assert torch.equal(fitted.self_influence, torch.zeros(count))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_too_small_for_float32_score_zero_instead_of_nan(method):
    left, right = torch.randn(40, 4, 1) * 1e-25, torch.randn(40, 5, 1)
    fitted = fitted_by(method, left, right, rank=10)
    assert fitted.damping == 1.0
    assert bool(fitted.eigenvectors.isfinite().all())
    assert torch.equal(self_influence(left, right, fitted), torch.zeros(40))


def test_gradients_too_large_for_a_sketch_are_refused():
    left, right = random_factors(100)
    with pytest.raises(ValueError, match=r"^the squares of the gradients are beyond float32$"):
        fitted_by("nystroem", left * 1e25, right, rank=4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [6, 100], ids=["N < D", "N > D"])
def test_rows_that_are_all_the_same_have_one_eigenpair(method, count):
    left, right = (factor.expand(count, -1, -1) for factor in random_factors(1))
    fitted = fitted_by(method, left, right, rank=DIM)
    expected = expected_influence(gradients_of(left, right), DIM, 0.5)
    assert relative_error(self_influence(left, right, fitted), expected) < 1e-3
    rounding = 1e-3 if method == "nystroem" else 1e-5
    assert float(fitted.eigenvalues[1:].sum()) <= rounding * float(fitted.eigenvalues[0])
    assert bool((fitted.eigenvalues >= 0).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [30, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_self_influence_does_not_depend_on_the_gradients_unit(method, scale, count):
    left, right = random_factors(count, scale=scale)
    fitted = fitted_by(method, left, right, rank=12)
    expected = expected_influence(gradients_of(left / scale, right), 12, 0.5)
    assert relative_error(self_influence(left, right, fitted), expected) < 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [6, 40])
@pytest.mark.parametrize("factor_rank", [None, 1, 2])
def test_the_smallest_blocks_give_the_same_curvature(method, factor_rank, rank):
    left, right = random_factors(60, factor_rank or 2)
    if factor_rank is None:
        left, right = gradients_of(left, right).float().view(60, ROWS, COLUMNS), None
    whole = fitted_by(method, left, right, rank=rank)
    pieces = fitted_by(method, left, right, 7, rank=rank, block=1)
    kept = pieces.eigenvalues > 1e-4 * pieces.eigenvalues[0]
    torch.testing.assert_close(pieces.eigenvalues[kept], whole.eigenvalues[kept], rtol=1e-3, atol=0)
    assert pieces.trace == pytest.approx(whole.trace)
    influence = self_influence(left, right, whole)
    torch.testing.assert_close(self_influence(left, right, whole, 1), influence, rtol=1e-5, atol=1e-7)
    assert relative_error(self_influence(left, right, pieces), influence.double()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method, count", [(one, 60) for one in METHODS] + [("dual", 30)])
def test_stored_dtypes_are_fitted_without_further_rounding(method, count, dtype):
    left, right = (factor.to(dtype) for factor in random_factors(count))
    fitted = fitted_by(method, left, right, rank=10, damping=0.1)
    expected = expected_influence(gradients_of(left, right), 10, 0.1)
    assert relative_error(self_influence(left, right, fitted), expected) < 1e-3


@pytest.mark.parametrize("rank", [5, None])
@pytest.mark.parametrize("count", [30, 200], ids=["N < D", "N > D"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_blocks_are_fitted_like_factors_of_full_rank(dtype, method, count, rank):
    matrices = torch.einsum("nrc,nkc->nrk", *random_factors(count, rank=2)).to(dtype)
    fitted = fitted_by(method, matrices, None, 1, 0, 17, rank=rank)
    gradients = matrices.double().flatten(1)
    hessian = truncated_hessian(gradients, rank or DIM, 0.5)
    assert fitted.trace == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    expected = (gradients @ torch.linalg.solve(hessian, gradients.T)).diagonal()
    lost = LOST.get(method, 1e-3) if rank else 1e-3
    assert relative_error(self_influence(matrices, None, fitted), expected) < lost
    solved = woodbury_solve(gradients[:3].float(), fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
    assert relative_error(solved, torch.linalg.solve(hessian, gradients[:3].T).T) < lost


@pytest.mark.parametrize("rank", [1, 12, 30, DIM])
@pytest.mark.parametrize("factor_rank", [1, 3])
@pytest.mark.parametrize("damping", [0.5, 1e-4])
@pytest.mark.parametrize("method, count", [("gram", 100), ("dual", 100), ("dual", 20)])
def test_self_influence_equals_g_transposed_inverse_hessian_g(method, count, rank, factor_rank, damping):
    left, right = random_factors(count, factor_rank, decay=0.8)
    fitted = fitted_by(method, left, right, rank=rank, damping=damping)
    expected = expected_influence(gradients_of(left, right), min(rank, count), damping)
    found = [self_influence(left, right, fitted)]
    assert (fitted.self_influence is not None) == (method == "dual")
    found += [] if fitted.self_influence is None else [fitted.self_influence]
    for one in found:
        torch.testing.assert_close(one.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
        assert one.dtype == torch.float32 and bool((one >= 0).all())


def test_self_influence_keeps_its_digits_in_rows_that_lie_inside_the_kept_space():
    """Five rows that nobody shares and twice as heavy take the top eigenpairs: nothing of them is outside."""
    gradients = torch.randn(40, DIM, dtype=torch.float64)
    gradients[:5] = torch.linalg.qr(torch.randn(DIM, 5, dtype=torch.float64)).Q.T * 1e3
    matrices = gradients.float().view(-1, ROWS, COLUMNS)
    fitted = fitted_by("gram", matrices, None, rank=5, damping=1e-6)
    expected = expected_influence(matrices.double().flatten(1), 5, 1e-6)
    torch.testing.assert_close(self_influence(matrices, None, fitted).double(), expected, rtol=1e-3, atol=0)


def test_the_inverse_root_squares_to_the_inverse():
    left, right = random_factors(100, decay=0.8)
    fitted = fitted_by("gram", left, right, rank=30)
    inverse = torch.linalg.inv(truncated_hessian(gradients_of(left, right), 30, 0.5))
    assert relative_error(fitted.inverse_root @ fitted.inverse_root, inverse) < 1e-4


def test_self_influence_of_no_row_is_empty():
    for rank in (4, 40):
        fitted = fitted_by("gram", *random_factors(60), rank=rank)
        assert self_influence(torch.empty(0, ROWS, 1), torch.empty(0, COLUMNS, 1), fitted).shape == (0,)
        assert self_influence(torch.empty(0, ROWS, COLUMNS), None, fitted).shape == (0,)


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


@pytest.mark.parametrize("method, count", [("dual", 40), ("gram", 200)])
@pytest.mark.parametrize("damping", [1e-4, 1e-6])
def test_scores_keep_their_digits_where_the_damping_is_far_below_the_eigenvalues(damping, method, count):
    """As in TRAK: what float32 leaves of a query inside the kept space must not be divided by lambda."""
    gradients = gradients_of(*random_factors(count, rank=6, decay=0.8))
    fitted = fitted_by(method, gradients.float().view(-1, ROWS, COLUMNS), None, rank=None, damping=damping)
    hessian = gradients.T @ gradients + fitted.damping * torch.eye(DIM, dtype=torch.float64)
    expected = gradients @ torch.linalg.solve(hessian, gradients.T)
    solved = woodbury_solve(gradients.float(), fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
    assert relative_error(solved @ gradients.float().T, expected) < 1e-3


def test_the_plan_says_which_method_runs(monkeypatch):
    stored, taken = held(*random_factors(100)), []
    for method in METHODS:
        real = getattr(curvature, f"{method}_eigenpairs")
        monkeypatch.setattr(
            curvature,
            f"{method}_eigenpairs",
            lambda *a, real=real, method=method, **k: taken.append(method) or real(*a, **k),
        )
        fit(stored, plan_method(stored, 4, method, max_memory=1 << 40), damping=0.5)
    assert taken == METHODS
