"""Queries made of their tokens are those that are formed and whitened, and held thin without what is no token."""

import pytest
import torch

from lorif_hf.algebra.matrices import LowRankMatrices, dense
from lorif_hf.algebra.token_factors import TokenFactors, thin_groups, token_counts


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def formed(inputs, outputs, in_whitener, out_whitener):
    """The gradients, whole and in double precision, token by token."""
    gradients = torch.zeros(len(inputs), inputs.shape[2], outputs.shape[2], dtype=torch.float64)
    for example in range(len(inputs)):
        for x, dy in zip(inputs[example].double(), outputs[example].double(), strict=True):
            gradients[example] += torch.outer(x, dy)
    if in_whitener is not None:
        gradients = in_whitener.double().T @ gradients
    return gradients if out_whitener is None else gradients @ out_whitener.double()


@pytest.mark.parametrize("whitened", ["both", "inputs", "outputs", "none"])
@pytest.mark.parametrize(("d1", "d2"), [(12, 20), (20, 12), (16, 16), (1, 16)])
@pytest.mark.parametrize("tokens", [1, 3, 8, 14, 60])
def test_gradients_are_those_that_are_formed(tokens, d1, d2, whitened):
    sides = (
        random(d1, d1, seed=1) if whitened in ("both", "inputs") else None,
        random(d2, d2, seed=2) if whitened in ("both", "outputs") else None,
    )
    inputs, outputs = random(3, tokens, d1, seed=3), random(3, tokens, d2, seed=4)
    outputs[1] = 0
    made, expected = TokenFactors(*sides)(inputs, outputs), formed(inputs, outputs, *sides)
    assert isinstance(made, LowRankMatrices) == (tokens * (d1 + d2) <= d1 * d2)
    assert (dense(made) - expected).norm() <= 1e-5 * expected.norm() and not dense(made)[1].any()
    if isinstance(made, LowRankMatrices):
        torch.testing.assert_close(made.squares, expected.square().sum(dim=(1, 2)), rtol=1e-5, atol=0)
        assert made.left.shape[2] == tokens and made.left.dtype == torch.float32


@pytest.mark.parametrize("tokens", [3, 60])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_what_is_not_finite_on_either_side_shows_on_the_right(tokens, side):
    inputs, outputs = random(3, tokens, 12), random(3, tokens, 20)
    (inputs if side == "inputs" else outputs)[1, 2, 4] = torch.inf
    made = TokenFactors(random(12, 12), random(20, 20))(inputs, outputs)
    numbers = made.right if isinstance(made, LowRankMatrices) else made
    assert torch.isfinite(numbers).flatten(1).all(dim=1).tolist() == [True, False, True]


def test_examples_do_not_depend_on_those_beside_them():
    factors = TokenFactors(random(12, 12), random(20, 20))
    inputs, outputs = random(4, 5, 12), random(4, 5, 20)
    together = dense(factors(inputs, outputs))
    for number in range(4):
        torch.testing.assert_close(together[number], dense(factors(inputs[[number]], outputs[[number]]))[0])


@pytest.fixture
def padded():
    """Six queries of 24 tokens, of which 24, 9, 8, 1, 0 and 9 have a gradient, here and there."""
    counts = [24, 9, 8, 1, 0, 9]
    left, right = random(6, 24, 30), random(6, 24, 20, seed=1)
    for number, count in enumerate(counts):
        right[number, torch.randperm(24, generator=torch.Generator().manual_seed(number))[count:]] = 0
    return LowRankMatrices.product(left.mT, right.mT), counts


def test_tokens_with_a_gradient_are_counted(padded):
    product, counts = padded
    assert token_counts([product]) == [counts]
    assert token_counts([product, LowRankMatrices.product(random(1, 4, 2), random(1, 3, 2))]) == [counts, [2]]
    assert token_counts([]) == []


@pytest.mark.parametrize(
    ("widest", "sizes"),
    [
        (100, {24: [0], 16: [1, 5], 8: [2, 3, 4]}),
        (16, {None: [0], 16: [1, 5], 8: [2, 3, 4]}),
        (8, {None: [0, 1, 5], 8: [2, 3, 4]}),
        (0, {None: [0, 1, 2, 3, 4, 5]}),
    ],
)
def test_queries_of_like_many_tokens_are_held_together_and_wide_ones_whole(padded, widest, sizes):
    product, counts = padded
    expected, query_ids = product.left.double() @ product.right.double().mT, torch.tensor([1, 2, 5, 7, 8, 11])
    groups = thin_groups(product, counts, query_ids, widest)
    got = {None if g.right is None else g.left.shape[1]: g.query_ids.tolist() for g in groups}
    assert got == {tokens: query_ids[numbers].tolist() for tokens, numbers in sizes.items()}
    for group in groups:
        places = torch.tensor([query_ids.tolist().index(number) for number in group.query_ids.tolist()])
        torch.testing.assert_close(group.matrices().double(), expected[places], rtol=1e-5, atol=1e-5)
        assert group.left.is_contiguous() and (group.right is None or group.right.is_contiguous())


def test_short_queries_keep_what_they_have():
    product = LowRankMatrices.product(random(2, 9, 3), random(2, 7, 3))
    (group,) = thin_groups(product, [3, 3], torch.tensor([0, 1]), 8)
    assert group.left.shape == (2, 3, 9) and torch.equal(group.right, product.right.mT)
