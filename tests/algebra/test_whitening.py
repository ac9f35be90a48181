"""Second moments and whiteners against explicit sums and inverses in float64."""

import pytest
import scipy.fft
import torch

from lorif_hf.algebra import whitening
from lorif_hf.algebra.whitening import SecondMoments, _cosines, damped_whitener, whiteners


D1, D2 = 4, 3


def tokens(count, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix_in, mix_out = torch.randn(D1, D1, generator=generator), torch.randn(D2, D2, generator=generator)
    return torch.randn(count, D1, generator=generator) @ mix_in, scale * torch.randn(
        count, D2, generator=generator
    ) @ mix_out


def moments_of(x, dy):
    moments = SecondMoments.zeros(D1, D2)
    moments.add(moments.of(x, dy))
    return moments


def damped(moment, damping):
    moment, eye = moment.double(), torch.eye(len(moment), dtype=torch.float64)
    return moment + damping * moment.trace() / len(moment) * eye


def test_moments_are_sums_of_outer_products_over_tokens():
    x, dy = tokens(20)
    moments = SecondMoments.zeros(D1, D2)
    moments.add(moments.of(x[:6].view(2, 3, D1), dy[:6].view(2, 3, D2)))
    moments.add(moments.of(x[6:], dy[6:]))
    expected_in = sum(torch.outer(row, row) for row in x.double())
    expected_out = sum(torch.outer(row, row) for row in dy.double())
    assert moments.tokens == 20 and moments.inputs.dtype == moments.outputs.dtype == torch.float32
    torch.testing.assert_close(moments.inputs.double(), expected_in, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.outputs.double(), expected_out, rtol=1e-5, atol=1e-5)


def test_the_inputs_are_left_out_where_another_layer_has_them():
    x, dy = tokens(20)
    moments, whole = SecondMoments.zeros(None, D2), moments_of(x, dy)
    moments.add(moments.of(x, dy))
    assert moments.inputs is None and moments.tokens == 20 and torch.equal(moments.outputs, whole.outputs)
    assert whiteners(moments, damping=0.1)[0] is None
    assert torch.equal(whiteners(moments, damping=0.1)[1], whiteners(whole, damping=0.1)[1])


def test_positions_without_a_gradient_do_not_count():
    x, dy = tokens(10)
    padded_x, padded_dy = torch.full((3, 10, D1), 1e6), torch.zeros(3, 10, D2)
    at = torch.tensor([1, 2, 5, 9, 12, 13, 20, 21, 22, 29])
    padded_x.view(-1, D1)[at], padded_dy.view(-1, D2)[at] = x, dy
    found, expected = moments_of(padded_x, padded_dy), moments_of(x, dy)
    assert found.tokens == 10
    torch.testing.assert_close(found.inputs, expected.inputs)
    torch.testing.assert_close(found.outputs, expected.outputs)


@pytest.mark.parametrize("size", [1e-7, 5e-6])  # of random vectors, whose largest numbers differ by a few times
def test_rounding_is_no_gradient(size):
    """It is measured by the largest gradient of the same example, whatever its neighbours have."""
    x, dy = (side.view(2, 5, -1) for side in tokens(10))
    dy[1] *= 1e-7
    noisy = dy.clone()
    noisy[:, 2], dy[:, 2] = size * noisy[:, 2], 0
    found, expected = moments_of(x, noisy), moments_of(x, dy)
    assert found.tokens == expected.tokens == 8
    assert torch.equal(found.inputs, expected.inputs) and torch.equal(found.outputs, expected.outputs)


def test_a_small_gradient_counts():
    """One of a token that is predicted well, not rounding."""
    x, dy = (side.view(2, 5, -1) for side in tokens(10))
    dy[:, 2] *= 1e-3
    assert moments_of(x, dy).tokens == 10


def test_a_gradient_of_one_number_counts():
    x, dy = tokens(1)
    dy[0, 1:] = 0
    assert moments_of(x, dy).tokens == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_summed_in_float32(dtype):
    x, dy = (side.to(dtype) for side in tokens(500))
    found, expected = moments_of(x, dy), moments_of(x.double(), dy.double())
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("widest_symmetric", [0, 512])
def test_whiteners_are_roots_of_the_damped_inverse(monkeypatch, damping, scale, widest_symmetric):
    monkeypatch.setattr(whitening, "_SYMMETRIC", widest_symmetric)
    moments = moments_of(*tokens(50))
    in_whitener, out_whitener = whiteners(moments, damping=damping, scale=scale)
    assert in_whitener.dtype == out_whitener.dtype == torch.float32
    for found, moment in ((in_whitener, moments.inputs / 50), (out_whitener, moments.outputs * scale)):
        expected = torch.linalg.inv(damped(moment, damping))
        product = found.double() @ found.double().T
        torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert found.is_contiguous()


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_the_rotation_is_that_of_the_cosine_transform(size):
    expected = scipy.fft.dct(torch.eye(size, dtype=torch.float64).numpy(), type=2, norm="ortho", axis=1)
    torch.testing.assert_close(_cosines(size).double(), torch.from_numpy(expected), rtol=0, atol=1e-7)


def test_the_root_of_a_narrow_side_is_symmetric():
    whitener = damped_whitener(moments_of(*tokens(50)).inputs, 0.1)
    torch.testing.assert_close(whitener, whitener.T, rtol=0, atol=1e-5 * float(whitener.abs().max()))


@pytest.mark.parametrize("turned", [False, True])
def test_whitened_coordinates_of_a_wide_side_are_of_about_one_size(monkeypatch, turned):
    """However the variance falls off, and whether or not its directions are those of single coordinates."""
    monkeypatch.setattr(whitening, "_SYMMETRIC", 63)
    spectrum = torch.arange(1, 65).double().pow(-2)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).double()).Q
    moment = (turn * spectrum) @ turn.T if turned else spectrum.diag()
    whitener = damped_whitener(moment, 0.1).double()
    variances = (whitener.T @ moment @ whitener).diagonal()
    assert float(variances.max() / variances.min()) < 3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_whitened_inner_product_is_that_under_the_inverse_kronecker_product(scale):
    """vec(G_q)^T (A' (x) S')^-1 vec(G_i), by a D x D inverse."""
    moments = moments_of(*tokens(60))
    in_whitener, out_whitener = whiteners(moments, damping=0.1, scale=scale)
    gradients = torch.randn(5, D1, D2, generator=torch.Generator().manual_seed(3)).double()
    whitened = in_whitener.double().T @ gradients @ out_whitener.double()
    found = whitened.flatten(1) @ whitened.flatten(1).T
    kronecker = torch.kron(damped(moments.inputs / 60, 0.1), damped(moments.outputs * scale, 0.1))
    expected = gradients.flatten(1) @ torch.linalg.inv(kronecker) @ gradients.flatten(1).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_kronecker_product_is_in_the_unit_of_the_sum_over_examples():
    """For independent inputs and gradients A' (x) S' is the expected sum of vec(G) vec(G)^T over all examples."""
    generator = torch.Generator().manual_seed(5)
    mix_in, mix_out = torch.randn(D1, D1, generator=generator), torch.randn(D2, D2, generator=generator)
    examples, length, total = 4000, 3, 12_000
    x = torch.randn(examples, length, D1, generator=generator) @ mix_in
    dy = torch.randn(examples, length, D2, generator=generator) @ mix_out
    gradients = (x.mT @ dy).flatten(1).double()
    hessian = total / examples * gradients.T @ gradients
    moments = moments_of(x, dy)
    kronecker = torch.kron(moments.inputs / moments.tokens, moments.outputs * total / examples).double()
    assert (hessian - kronecker).norm() < 0.15 * hessian.norm()


@pytest.mark.parametrize("empty", ["both", "inputs", "outputs"])
def test_a_side_without_any_moment_is_left_as_it_is(empty):
    x, dy = tokens(20)
    moments = moments_of(x, dy)
    if empty != "outputs":
        moments.inputs.zero_()
    if empty != "inputs":
        moments.outputs.zero_()
    in_whitener, out_whitener = whiteners(moments, damping=0.1)
    assert torch.equal(in_whitener, torch.eye(D1)) == (empty != "outputs")
    assert torch.equal(out_whitener, torch.eye(D2)) == (empty != "inputs")


def test_no_token_at_all_whitens_nothing():
    in_whitener, out_whitener = whiteners(SecondMoments.zeros(D1, D2), damping=0.1, scale=100.0)
    assert torch.equal(in_whitener, torch.eye(D1)) and torch.equal(out_whitener, torch.eye(D2))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("damping", [1e-30, 1e-6, 0.1])
def test_singular_moments_are_damped_and_never_nan(count, damping):
    sides = whiteners(moments_of(*tokens(count)), damping=damping)
    assert all(bool(side.isfinite().all()) for side in sides)


def test_rounding_below_zero_is_no_eigenvalue():
    """A moment of rank one whose eigenvalues come out a little negative, with next to no damping."""
    moments = moments_of(*tokens(1, scale=1e3))
    moments.inputs -= 1e-3 * float(moments.inputs.trace()) * torch.eye(D1)
    for side in whiteners(moments, damping=1e-12):
        assert bool(side.isfinite().all()) and bool((torch.linalg.svdvals(side.double()) > 0).all())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_gradients_does_not_matter(scale):
    one, other = (whiteners(moments_of(*tokens(40, scale=s)), damping=0.1) for s in (1.0, scale))
    torch.testing.assert_close(other[0], one[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other[1] * scale, one[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_moment_that_is_not_finite_is_refused(side, value):
    moments = moments_of(*tokens(10))
    getattr(moments, side)[1, 1] = value
    with pytest.raises(ValueError, match="^a second moment is not finite$"):
        whiteners(moments, damping=0.1)


def test_a_whitener_of_a_shared_scale_is_that_of_the_scaled_moment():
    moment = moments_of(*tokens(40)).inputs
    torch.testing.assert_close(damped_whitener(moment, 0.1, 3.0), damped_whitener(3.0 * moment.double(), 0.1))
