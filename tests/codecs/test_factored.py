"""Rank-c factors in a floating-point type."""

import pytest
import torch
from codec_scores import fast_scores, rebuilt
from stored import D1, D2, gradients
from tiny import plain_config

from lorif_hf.algebra.factors import factor_products, factorize
from lorif_hf.codecs import FactoredCodec
from lorif_hf.errors import ConfigError


def test_factors_are_those_of_the_factorisation():
    matrices = gradients()
    left, right = factorize(matrices, 2)
    parts = FactoredCodec(2, torch.bfloat16).encode(matrices)
    # A vector's numbers side by side.
    assert torch.equal(parts["u"], left.mT.bfloat16()) and torch.equal(parts["v"], right.mT.bfloat16())
    assert parts["u"].is_contiguous() and parts["u"].shape == (12, 2, D1)
    again = FactoredCodec(2, torch.bfloat16).factors(parts, D1, D2)
    assert torch.equal(again[0], left.bfloat16()) and torch.equal(again[1], right.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_factors_are_widened_and_not_rounded(dtype):
    codec = FactoredCodec(2, dtype)
    parts = codec.encode(gradients(20))
    queries = torch.randn(3, D1, D2, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(3, 20, dtype=torch.float64)
    for q in range(3):
        for i in range(20):
            for u, v in zip(parts["u"][i].double(), parts["v"][i].double(), strict=True):
                expected[q, i] += u @ queries[q].double() @ v
    scores = fast_scores(codec, queries, parts, D1, D2)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_pairs_that_cancel_leave_what_is_left_of_them():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(1, 9, 1, generator=generator), torch.randn(1, 7, 1, generator=generator)
    parts = {
        "u": torch.cat([u, -u], dim=2).mT.contiguous(),
        "v": torch.cat([v, v * (1 - 1e-6)], dim=2).mT.contiguous(),
    }
    codec = FactoredCodec(2, torch.float32)
    stored, query = rebuilt(codec, parts, D1, D2), torch.randn(1, 9, 7, generator=generator)
    expected = (query.double() * stored).sum()
    size = float(query.norm() * u.norm() * v.norm())
    assert abs(float(fast_scores(codec, query, parts, D1, D2)) - float(expected)) < 1e-6 * size


@pytest.mark.parametrize("pairs", [1, 4])
def test_encoding_takes_the_products_of_the_factorisation(pairs):
    assert FactoredCodec(pairs, torch.bfloat16).products == factor_products(pairs) > 0


@pytest.mark.parametrize("choices", [{"factor_rank": None, "bits": 16}, {"factor_rank": 2, "bits": 4}], ids=str)
def test_factors_need_a_rank_and_sixteen_bits(choices):
    with pytest.raises(ConfigError) as caught:
        plain_config(codec="factored", **choices)
    assert str(caught.value) == (
        f"Factors in a floating-point type need a rank and bits=16, got factor_rank={choices['factor_rank']} and "
        f"bits={choices['bits']}."
    )
