"""Rank-c factors at a few bits a number."""

import pytest
import torch
from codec_scores import rebuilt
from stored import D1, D2, gradients
from tiny import plain_config

from lorif_hf.algebra.quantization import PAIR_PRODUCTS, quantized_factors
from lorif_hf.algebra.scoring import QueryGroup, Workspace
from lorif_hf.codecs import FactoredCodec, PackedCodec
from lorif_hf.errors import ConfigError


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("rank", [1, 3])
def test_packed_factors_are_quantised_ones_whose_scales_make_up_for_what_is_lost(bits, rank):
    matrices, codec = gradients(), PackedCodec(rank, bits)
    left, right = codec.factors(codec.encode(matrices), D1, D2)
    expected = quantized_factors(matrices, rank, bits)
    scales = expected.scales / expected.shares.unsqueeze(1)
    assert torch.equal(right, expected.right)
    assert torch.equal(left, expected.left * scales.bfloat16().float().unsqueeze(1))


def test_zero_gradients_are_stored_as_zero():
    codec = PackedCodec(2, 1)
    assert float(rebuilt(codec, codec.encode(torch.zeros(3, D1, D2)), D1, D2).abs().max()) == 0


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("first, last", [(0, 150), (3, 70)])
def test_what_is_unpacked_to_be_scored_is_what_was_stored(bits, first, last):
    codec = PackedCodec(3, bits)
    parts = codec.encode(gradients(150))
    left, right, scales = codec.unpacked(parts, slice(first, last), D1, D2, Workspace())
    count = last - first
    assert left.shape[0] == right.shape[0] == scales.shape[0] >= count and left.shape[0] % 64 == 0
    levels = left[:count].double() * scales[:count].double().unsqueeze(2)
    expected = rebuilt(codec, parts, D1, D2)[first:last]
    torch.testing.assert_close(levels.mT @ right[:count].double(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_every_bit_more_brings_the_stored_gradient_nearer(rank):
    matrices = gradients(200)
    codecs = [PackedCodec(rank, bits) for bits in (1, 2, 4, 8)] + [FactoredCodec(rank, torch.float32)]
    errors = [float((rebuilt(codec, codec.encode(matrices), D1, D2) - matrices).norm()) for codec in codecs]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.05 * errors[2]


def test_many_scales_are_widened_to_their_very_numbers():
    """Every bfloat16 that is a number, the smallest and the largest among them."""
    every_half = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = every_half[every_half.isfinite()].view(-1, 1)
    codec = PackedCodec(1, 1)
    parts = {
        "u": torch.zeros(len(finite), 1, 1, dtype=torch.uint8),
        "v": torch.zeros(len(finite), 1, 1, dtype=torch.uint8),
    }
    _, _, scales = codec.unpacked({**parts, "u_scale": finite}, slice(0, len(finite)), 3, 3, Workspace())
    assert torch.equal(scales[: len(finite)], finite.float())


@pytest.mark.parametrize("pairs", [1, 4])
def test_encoding_takes_the_products_of_each_pair(pairs):
    assert PackedCodec(pairs, 1).products == pairs * PAIR_PRODUCTS > 0


@pytest.mark.parametrize("choices", [{"factor_rank": None, "bits": 4}, {"factor_rank": 2, "bits": 16}], ids=str)
def test_packed_factors_need_a_rank_and_few_bits(choices):
    with pytest.raises(ConfigError) as caught:
        plain_config(codec="packed", **choices)
    assert str(caught.value) == (
        f"Packed factors need a rank and at most 8 bits a number, got factor_rank={choices['factor_rank']} and "
        f"bits={choices['bits']}."
    )


def test_bits_and_a_dtype_are_two_answers_to_one_question():
    with pytest.raises(ConfigError) as caught:
        plain_config(bits=1, dtype="float16")
    assert str(caught.value) == "bits=1 says how factors are stored, and so does dtype='float16': set one."


@pytest.mark.parametrize("queries", [1, 3])
def test_signs_are_scored_by_look_up_where_there_are_many(queries):
    """Within the parts' rows, one of the queries held thin: as multiplied, to the rounding of float32."""
    codec, count = PackedCodec(3, 1), 150
    parts = codec.encode(gradients(count))
    matrices = torch.randn(queries, D1, D2, generator=torch.Generator().manual_seed(0))
    thin = QueryGroup(torch.tensor([queries]), matrices[:1, :, :2].mT, matrices[:1, :2])
    groups = [thin, QueryGroup(torch.arange(queries), matrices)]
    scores = [torch.zeros(queries + 1, count - 7) for _ in range(2)]
    for into, examples in zip(scores, (10**6, 0), strict=True):
        codec.add_scores(into, groups, parts, D1, D2, Workspace(), 7, examples)
    assert torch.equal(scores[0][queries], scores[1][queries])
    assert not torch.equal(scores[0], scores[1]), "they are looked up"
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5 * float(scores[1].abs().max()))


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_only_one_bit_is_signs(bits):
    parts = PackedCodec(3, bits).encode(gradients(9))
    stored = PackedCodec(3, bits).signs(parts, slice(2, 7))
    if bits != 1:
        assert stored is None
        return
    for part, name in ((stored.left, "u"), (stored.right, "v"), (stored.scales, "u_scale")):
        assert torch.equal(part, parts[name][2:7])
