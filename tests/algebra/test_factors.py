import pytest
import torch

from lorif_hf.algebra.factors import _orthonormalize, factorize, reconstruct


DECAYS = {"random": 1.0, "slow decay": 0.8, "fast decay": 0.3, "steep decay": 0.02}


def random_matrices(count, rows, columns, *, decay=1.0, seed=0, dtype=torch.float64):
    """Matrices whose singular values fall by `decay` from one to the next (`1.0`: plain Gaussian matrices)."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    if decay < 1:
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        matrices = (u * decay ** torch.arange(s.shape[1], dtype=torch.float64)) @ vh
    return matrices.to(dtype)


def few_tokens(count, rows, columns, tokens, *, seed=0, dtype=torch.float32):
    """The gradient of an example with few tokens: a matrix of rank `tokens`."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, tokens, rows, generator=generator, dtype=torch.float64)
    output_gradients = torch.randn(count, tokens, columns, generator=generator, dtype=torch.float64)
    return (inputs.transpose(1, 2) @ output_gradients).to(dtype)


def errors_and_best(matrices, rank):
    """Frobenius error of each factorisation, and the smallest one possible at this rank (Eckart-Young)."""
    left, right = factorize(matrices, rank)
    error = (matrices.double() - left.double() @ right.double().transpose(1, 2)).norm(dim=(1, 2))
    return error, torch.linalg.svdvals(matrices.double())[:, rank:].norm(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rows, columns, rank", [(24, 32, 1), (32, 24, 1), (16, 16, 1), (3, 40, 1), (3, 40, 2), (24, 32, 4), (32, 24, 8)]
)
@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_the_error_is_within_one_percent_of_the_best_possible(decay, rows, columns, rank, dtype):
    """On average: where two singular values are nearly equal, a fixed number of rounds leaves one matrix a mixture."""
    matrices = random_matrices(100, rows, columns, decay=decay, dtype=dtype)
    error, best = errors_and_best(matrices, rank)
    norm = matrices.double().norm(dim=(1, 2))
    assert float(error.mean()) <= 1.01 * float(best.mean()) + 2e-5 * float(norm.mean())
    assert bool((error <= 1.25 * best + 1e-3 * norm).all())


@pytest.mark.parametrize("rows, columns", [(4, 9), (9, 4), (5, 5), (1, 7), (7, 1), (1, 1)])
def test_the_factorisation_is_exact_at_the_largest_rank(rows, columns):
    matrices = random_matrices(3, rows, columns, dtype=torch.float32)
    left, right = factorize(matrices, min(rows, columns))
    assert left.shape == (3, rows, min(rows, columns)) and right.shape == (3, columns, min(rows, columns))
    assert torch.equal(left @ right.transpose(1, 2), matrices)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_matrix_of_lower_rank_is_exact_and_its_spare_columns_are_zero(tokens):
    matrices = few_tokens(6, 20, 30, tokens)
    left, right = factorize(matrices, 4)
    error = (matrices - left @ right.transpose(1, 2)).norm(dim=(1, 2))
    assert bool((error <= 1e-5 * matrices.norm(dim=(1, 2))).all())
    assert (left.norm(dim=1) == 0).sum(dim=1).tolist() == [4 - tokens] * 6
    assert (right.norm(dim=1) == 0).sum(dim=1).tolist() == [4 - tokens] * 6


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_an_all_zero_matrix_has_zero_factors(rank):
    left, right = factorize(torch.zeros(2, 5, 6), rank)
    assert torch.equal(left @ right.transpose(1, 2), torch.zeros(2, 5, 6))


def test_left_columns_are_orthonormal_and_the_right_ones_carry_the_scale():
    matrices = 1000 * random_matrices(4, 20, 12, dtype=torch.float32)
    left, right = factorize(matrices, 5)
    torch.testing.assert_close(left.transpose(1, 2) @ left, torch.eye(5).expand(4, 5, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(right, matrices.transpose(1, 2) @ left, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("rank, rounds", [(1, 8), (2, 16)])
def test_the_number_of_rounds_is_the_published_one(rank, rounds):
    """k rounds on diag(1, ..., 1, s) leave s^(2k + 1) of the last coordinate in the subspace that they find."""

    def left_over(s):
        matrix = torch.diag(torch.tensor([1.0] * rank + [s], dtype=torch.float64))
        left = factorize(matrix.unsqueeze(0), rank)[0][0]
        return left[rank:] @ torch.linalg.inv(left[:rank])

    ratio = left_over(0.9) / left_over(0.8)
    torch.testing.assert_close(ratio, torch.full_like(ratio, (0.9 / 0.8) ** (2 * rounds + 1)))


def test_nearly_dependent_columns_come_out_orthogonal():
    first, second = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    columns = _orthonormalize(torch.stack([first, first + 1e-4 * second], dim=1).unsqueeze(0))[0]
    torch.testing.assert_close(columns.T @ columns, torch.eye(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", ["random", "decaying", "one token", "two tokens", "zero", "tiny", "huge"])
def test_factors_do_not_depend_on_the_other_matrices_of_the_batch(kind, rank):
    batch = random_matrices(7, 20, 30, seed=1, dtype=torch.float32)
    batch[1] = 0
    batch[2] *= 1e25
    batch[3] = torch.nan
    batch[4] *= 1e-25
    batch[5] = few_tokens(1, 20, 30, 1, seed=5)[0]
    matrix = {
        "random": random_matrices(1, 20, 30, seed=2, dtype=torch.float32),
        "decaying": random_matrices(1, 20, 30, decay=0.3, seed=2, dtype=torch.float32),
        "one token": few_tokens(1, 20, 30, 1, seed=2),
        "two tokens": few_tokens(1, 20, 30, 2, seed=2),
        "zero": torch.zeros(1, 20, 30),
        "tiny": 1e-25 * random_matrices(1, 20, 30, seed=2, dtype=torch.float32),
        "huge": 1e25 * random_matrices(1, 20, 30, seed=2, dtype=torch.float32),
    }[kind]
    batch[6] = matrix[0]
    alone, together = factorize(matrix, rank), factorize(batch, rank)
    for one, among in zip(alone, together, strict=True):
        torch.testing.assert_close(among[6], one[0], rtol=0, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("tokens", [1, 2, 60])
def test_rounding_in_the_gradient_hardly_moves_the_factors(tokens, rank):
    matrices = few_tokens(6, 20, 30, tokens)
    noise = 1e-7 * torch.randn(matrices.shape, generator=torch.Generator().manual_seed(3))
    for before, after in zip(factorize(matrices, rank), factorize(matrices * (1 + noise), rank), strict=True):
        moved = (after - before).norm(dim=(1, 2)) / before.norm(dim=(1, 2))
        assert float(moved.max()) < 1e-4


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e25])
@pytest.mark.parametrize("rank", [1, 3])
def test_tiny_and_huge_gradients_have_the_same_directions(scale, rank):
    matrices = random_matrices(4, 12, 10, dtype=torch.float32)
    left, right = factorize(matrices, rank)
    scaled_left, scaled_right = factorize(matrices * scale, rank)
    torch.testing.assert_close(scaled_left, left, atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled_right / scale, right, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_empty_batch_gives_empty_factors(rank):
    left, right = factorize(torch.empty(0, 3, 4), rank)
    assert left.shape == (0, 3, rank) and right.shape == (0, 4, rank)


def test_the_same_matrix_always_gives_the_same_factors_and_the_global_generator_is_left_alone():
    matrices = random_matrices(3, 9, 8, dtype=torch.float32)
    state = torch.get_rng_state()
    first = factorize(matrices, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, factorize(matrices, 3), strict=True))


@pytest.mark.parametrize("rows, columns, rank", [(5, 4, 2), (5, 4, 4), (4, 5, 4), (1, 5, 1), (5, 1, 1)])
def test_factors_hold_no_memory_of_the_callers_matrices(rows, columns, rank):
    matrices = random_matrices(2, rows, columns, dtype=torch.float32)
    factors = factorize(matrices, rank)
    kept = [factor.clone() for factor in factors]
    matrices.zero_()
    assert all(torch.equal(a, b) for a, b in zip(factors, kept, strict=True))


@pytest.mark.parametrize("dtype, computed", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
@pytest.mark.parametrize("rank", [1, 4])
def test_narrow_dtypes_are_computed_in_float32(dtype, computed, rank):
    left, right = factorize(random_matrices(2, 4, 6, dtype=dtype), rank)
    assert left.dtype == computed and right.dtype == computed


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_an_impossible_rank_is_refused_with_its_limits(rank):
    with pytest.raises(ValueError, match=rf"between 1 and min\(d1, d2\) = 4, got {rank}"):
        factorize(torch.ones(2, 6, 4), rank)


def test_a_single_matrix_is_refused_with_the_shape_that_was_expected():
    with pytest.raises(ValueError, match=r"shape \(n, d1, d2\), got \(6, 4\)"):
        factorize(torch.ones(6, 4), 1)


@pytest.mark.parametrize("count, rank", [(5, 1), (5, 3), (1, 2), (0, 2)])
def test_norms_and_products_of_factors_equal_their_definitions(count, rank):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(count, 4, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(count, 6, rank, generator=generator, dtype=torch.float64)
    assert reconstruct(left, right).shape == (count, 4, 6)
    for i in range(count):
        matrix = sum(torch.outer(left[i, :, j], right[i, :, j]) for j in range(rank))
        torch.testing.assert_close(reconstruct(left, right)[i], matrix)
