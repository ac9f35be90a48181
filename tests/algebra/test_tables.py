"""Moments of a table against plain sums over vectors in float64, and what is made of them against eigenvectors."""

import pytest
import torch

from lorif_hf.algebra.sides import OneHot, as_vectors, cat_tokens
from lorif_hf.algebra.tables import TableMoments, table_roots


ROWS, D2 = 7, 3


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lookups(examples=4, tokens=6, seed=0):
    ids = torch.randint(-1, ROWS, (examples, tokens), generator=torch.Generator().manual_seed(seed))
    return OneHot(ids, ROWS, torch.float32), random(examples, tokens, D2, seed=seed + 1)


def products(examples=4, tokens=5, seed=9):
    return 1e-3 * random(examples, tokens, ROWS, seed=seed), random(examples, tokens, D2, seed=seed + 1)


def filled():
    moments = TableMoments.zeros(ROWS, D2)
    for call in (lookups(), products(), lookups(2, 3, seed=5)):
        moments.add(moments.of(*call))
    return moments


def test_each_use_is_added_up_apart_and_a_row_that_is_none_counts_nothing():
    moments = filled()
    for use, calls in enumerate([[lookups(), lookups(2, 3, seed=5)], [products()]]):
        x = torch.cat([as_vectors(side).flatten(0, 1) for side, _ in calls]).double()
        dy = torch.cat([side.flatten(0, 1) for _, side in calls]).double()
        kept = x.abs().sum(dim=1) > 0
        torch.testing.assert_close(moments.inputs[use].double(), x[kept].square().sum(dim=0), rtol=1e-6, atol=0)
        torch.testing.assert_close(moments.outputs[use].double(), dy[kept].T @ dy[kept], rtol=1e-5, atol=1e-5)
        assert int(moments.tokens[use]) == int(kept.sum())
    ids = lookups()[0].ids
    counts = torch.bincount(ids[ids >= 0], minlength=ROWS).float()
    assert torch.equal(moments.of(*lookups()).inputs[0], counts)  # how often each row was looked up


@pytest.mark.parametrize("calls", [lookups, products])
def test_a_token_to_which_no_gradient_comes_back_counts_nothing(calls):
    inputs, outputs = calls()
    nothing = torch.zeros(4, 2, ROWS if calls is products else D2)
    if calls is products:
        padded = torch.cat([inputs, nothing], dim=1), torch.cat([outputs, random(4, 2, D2)], dim=1)
    else:
        more = OneHot(torch.zeros(4, 2, dtype=torch.int64), ROWS, torch.float32)
        padded = cat_tokens([inputs, more]), torch.cat([outputs, nothing], dim=1)
    moments, expected = (TableMoments.zeros(ROWS, D2).of(*call) for call in (padded, (inputs, outputs)))
    for found, known in zip(vars(moments).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(found, known)


@pytest.mark.parametrize("call", [lookups, products])
def test_of_a_single_use_the_roots_are_those_of_its_moments(call):
    moments = TableMoments.zeros(ROWS, D2).of(*call())
    use = int(call is products)
    in_scale, out_whitener = table_roots(moments, damping=0.1, scale=2.5)
    diagonal = moments.inputs[use] / moments.tokens[use]
    torch.testing.assert_close(
        in_scale.double(), (diagonal + 0.1 * diagonal.mean()).double() ** -0.5, rtol=1e-5, atol=0
    )
    outputs = 2.5 * moments.outputs[use]
    damped = (outputs + 0.1 * outputs.diagonal().mean() * torch.eye(D2)).double()
    whitened = out_whitener.double().T @ damped @ out_whitener.double()
    torch.testing.assert_close(whitened, torch.eye(D2).double(), rtol=0, atol=1e-5)
    assert in_scale.dtype == out_whitener.dtype == torch.float32


def test_two_uses_are_joined_so_that_neither_drowns_the_other():
    """Of all ratios the one, found here by search, that makes the trace of the product least."""
    moments = filled()
    in_scale, out_whitener = table_roots(moments, damping=1e-9)
    diagonals = [moments.inputs[use] / moments.tokens[use] for use in (0, 1)]

    def trace(ratio):
        return float(
            (diagonals[0] + ratio * diagonals[1]).sum() * (moments.outputs[0] + moments.outputs[1] / ratio).trace()
        )

    ratio = min(torch.logspace(-8, 8, 8001, dtype=torch.float64), key=trace)
    a, s = diagonals[0] + ratio * diagonals[1], moments.outputs[0] + moments.outputs[1] / ratio
    torch.testing.assert_close(in_scale.double(), a.double() ** -0.5, rtol=5e-3, atol=0)
    torch.testing.assert_close(
        out_whitener.double().T @ s.double() @ out_whitener.double(), torch.eye(D2).double(), rtol=0, atol=1e-2
    )


def test_the_units_of_a_use_make_no_difference():
    """Logits' gradients a thousand times as large beside inputs a thousand times as small are the same gradients."""
    moments, other = filled(), filled()
    other.inputs[1] *= 1e6
    other.outputs[1] *= 1e-6
    for found, known in zip(table_roots(other, damping=0.1), table_roots(moments, damping=0.1), strict=True):
        torch.testing.assert_close(found, known)


def test_nothing_gives_ones_and_the_identity_and_what_is_not_finite_is_refused():
    in_scale, out_whitener = table_roots(TableMoments.zeros(ROWS, D2), damping=0.1)
    assert torch.equal(in_scale, torch.ones(ROWS)) and torch.equal(out_whitener, torch.eye(D2))
    for name in ("inputs", "outputs"):
        moments = filled()
        getattr(moments, name).flatten()[0] = torch.inf
        with pytest.raises(ValueError, match="a second moment is not finite"):
            table_roots(moments, damping=0.1)
