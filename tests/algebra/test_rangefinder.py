"""Directions of gradients that are never formed, against the gradients formed in float64."""

import pytest
import torch

from lorif_hf.algebra.factors import factorize
from lorif_hf.algebra.matrices import dense
from lorif_hf.algebra.quantization import quantized_factors
from lorif_hf.algebra.rangefinder import RangeFinder


def whitener(size, generator):
    """A matrix whose singular values span two orders of magnitude, of no symmetry."""
    basis, other = torch.linalg.qr(torch.randn(2, size, size, generator=generator, dtype=torch.float64)).Q
    return (basis * torch.logspace(-1, 1, size, dtype=torch.float64)) @ other


def problem(count, tokens, d1, d2, seed=0):
    """Tokens and whiteners, and the whitened gradients in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, tokens, d1, generator=generator, dtype=torch.float64)
    outputs = torch.randn(count, tokens, d2, generator=generator, dtype=torch.float64)
    sides = whitener(d1, generator), whitener(d2, generator)
    return inputs, outputs, sides, sides[0].T @ inputs.mT @ outputs @ sides[1]


def found(problem, width):
    inputs, outputs, (one, other), _ = problem
    return RangeFinder(one.float(), other.float(), width)(inputs.float(), outputs.float())


def off(one, other):
    """The worst relative error of a batch of matrices."""
    return float(((one.double() - other).norm(dim=(1, 2)) / other.norm(dim=(1, 2))).max())


@pytest.mark.parametrize("padding", [0, 20])
@pytest.mark.parametrize(("d1", "d2"), [(40, 60), (60, 40), (24, 24), (9, 9)])
@pytest.mark.parametrize(
    ("tokens", "width"), [(3, 4), (1, 8), (3, 8), (4, 8), (5, 8), (8, 8), (5, 12), (6, 12), (7, 12), (12, 12)]
)
def test_gradients_of_few_tokens_are_found_whole(tokens, d1, d2, width, padding):
    """Their rank is at most the number of tokens. Half the width is where both blocks hold the weakest direction."""
    inputs, outputs, sides, whole = problem(300, tokens, d1, d2, seed=tokens + width + padding)
    padded = (torch.cat([side, torch.zeros(300, padding, side.shape[2])], dim=1) for side in (inputs, outputs))
    matrices = found((*padded, sides, whole), width)
    # Of as many tokens as directions, the weakest are as rounding to the strongest, whose square has been taken.
    assert off(dense(matrices), whole) < (0.03 if tokens == width else 0.005)
    if tokens < width and width >= 8:  # at 4, rounding can look like a direction; the narrowest in use is 12
        exact = whole.square().sum(dim=(1, 2))
        torch.testing.assert_close(matrices.squares, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("d1", "d2"), [(40, 60), (24, 24)])
def test_a_side_need_not_be_whitened(d1, d2):
    inputs, outputs, (_, other), _ = problem(20, 30, d1, d2)
    plain, identity = (
        RangeFinder(one, other.float(), 12)(inputs.float(), outputs.float()) for one in (None, torch.eye(d1))
    )
    torch.testing.assert_close(dense(plain), dense(identity))


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 12, 13, 50])
def test_no_direction_counts_twice(tokens):
    left = found(problem(300, tokens, 40, 60, seed=tokens), 12).left.double()
    values = torch.linalg.eigvalsh(left.mT @ left)
    assert float(values.max()) < 1 + 1e-5
    if tokens >= 13:
        assert float(values.min()) > 1 - 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_strongest_pairs_are_found(seed):
    """Three pairs of what is found against the best three of the whole gradient."""
    given = problem(4, 50, 40, 60, seed)
    values = torch.linalg.svdvals(given[3]).square()
    best = values[:, :3].sum(dim=1)
    kept = []
    for width in (8, 16, 24):
        one, found_values, other = torch.linalg.svd(dense(found(given, width)).double(), full_matrices=False)
        pairs = (one[:, :, :3] * found_values[:, None, :3]) @ other[:, :3]
        lost = (given[3] - pairs).square().sum(dim=(1, 2))
        kept.append(float(((values.sum(dim=1) - lost) / best).mean()))
    assert kept[0] < kept[1] < kept[2] < 1
    assert kept[1] > 0.98 and kept[2] > 0.99


def test_the_longer_side_may_be_either():
    inputs, outputs, sides, whole = problem(4, 50, 40, 60)
    turned = found((outputs, inputs, sides[::-1], whole.mT), 12)
    assert turned.shape == (4, 60, 40)
    torch.testing.assert_close(dense(turned).mT, dense(found((inputs, outputs, sides, whole), 12)))


def test_the_left_columns_are_orthonormal():
    left = found(problem(4, 50, 40, 60), 12).left.double()
    assert torch.allclose(left.mT @ left, torch.eye(12, dtype=torch.float64).expand(4, 12, 12), atol=2e-3)


def test_squared_norms_are_those_of_the_whole_gradients():
    """On the mean over many draws: each is an estimate."""
    given = problem(1, 30, 24, 32)
    exact = float(given[3].square().sum())
    inputs, outputs, sides, _ = given
    generator = torch.Generator().manual_seed(1)
    estimates = []
    for _ in range(400):
        # Turning the output side turns the fixed test vectors against it.
        turn = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64)).Q
        turned = turn.T @ sides[1] @ turn
        estimates.append(float(found((inputs, outputs @ turn, (sides[0], turned), None), 8).squares))
    assert abs(sum(estimates) / 400 / exact - 1) < 0.05
    whole = found(given, 64)
    assert abs(float(whole.squares) / exact - 1) < 1e-5


def test_each_example_is_treated_alone():
    given = problem(5, 20, 30, 40)
    together = found(given, 8)
    inputs, outputs, sides, _ = given
    for row in range(5):
        alone = found((inputs[row : row + 1], outputs[row : row + 1], sides, None), 8)
        assert off(dense(alone), dense(together)[row : row + 1].double()) < 1e-4


def test_padding_changes_nothing():
    inputs, outputs, sides, whole = problem(3, 20, 30, 40)
    padded = torch.cat([inputs, torch.randn(3, 7, 30, dtype=torch.float64)], dim=1)
    nothing = torch.cat([outputs, torch.zeros(3, 7, 40, dtype=torch.float64)], dim=1)
    one = dense(found((inputs, outputs, sides, whole), 8))
    assert off(dense(found((padded, nothing, sides, whole), 8)), one.double()) < 1e-4


@pytest.mark.parametrize("size", [1e-36, 1e-18, 1e12])
def test_tiny_and_huge_gradients(size):
    inputs, outputs, sides, whole = problem(3, 5, 20, 30)
    matrices = found((inputs, outputs * size, sides, whole), 8)
    assert off(matrices.left.double() @ matrices.right.double().mT, whole * size) < 1e-3


def test_no_gradient_and_no_example():
    inputs, outputs, sides, whole = problem(3, 5, 20, 30)
    nothing = found((inputs, outputs * 0, sides, whole), 8)
    assert not dense(nothing).any() and not nothing.squares.any()
    assert found((inputs[:0], outputs[:0], sides, whole), 8).shape == (0, 20, 30)


def test_one_gradient_that_is_not_finite_leaves_the_others_alone():
    inputs, outputs, sides, whole = problem(3, 5, 20, 30)
    outputs[1, 2, 3] = torch.nan
    right = found((inputs, outputs, sides, whole), 8).right
    assert torch.isfinite(right).flatten(1).all(dim=1).tolist() == [True, False, True]


def test_factors_of_low_rank_matrices_are_those_of_the_dense_ones():
    given = problem(6, 5, 24, 40)
    matrices = found(given, 8)
    left, right = factorize(matrices, 3)
    expected = factorize(dense(matrices), 3)
    torch.testing.assert_close(left @ right.mT, expected[0] @ expected[1].mT, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_codes_of_low_rank_matrices_come_as_near_as_those_of_the_dense_ones(bits):
    matrices = found(problem(6, 5, 24, 40), 8)
    whole = dense(matrices)

    def lost(given):
        left, right, scales, _ = quantized_factors(given, 3, bits)
        near = (left * scales.unsqueeze(1)) @ right.mT
        return float(((near - whole).norm(dim=(1, 2)) / whole.norm(dim=(1, 2))).mean())

    assert lost(matrices) == pytest.approx(lost(whole), rel=0.02)
