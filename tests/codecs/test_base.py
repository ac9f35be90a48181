"""What a codec stores, against the gradients it stands for."""

import pytest
import torch
from tiny import plain_config

from lorif_hf.algebra import scoring
from lorif_hf.algebra.factors import factorize
from lorif_hf.algebra.quantization import quantized_factors
from lorif_hf.algebra.scoring import QueryGroup, Workspace
from lorif_hf.algebra.thin_queries import range_factors
from lorif_hf.codecs.codecs import Codec, DenseCodec, FactorCodec, PackedCodec


D1, D2 = 9, 7
CODECS = {
    "dense float32": DenseCodec(torch.float32),
    "dense bfloat16": DenseCodec(torch.bfloat16),
    "factors float32": FactorCodec(3, torch.float32),
    "factors float16": FactorCodec(1, torch.float16),
    **{f"{bits} bits, rank {rank}": PackedCodec(rank, bits) for bits in (8, 4, 2, 1) for rank in (1, 3, D2)},
}
every = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def gradients(count=12, seed=0, decay=0.7):
    generator = torch.Generator().manual_seed(seed)
    scale = decay ** torch.arange(D1).view(-1, 1) * decay ** torch.arange(D2)
    return torch.randn(count, D1, D2, generator=generator) * scale


def rebuilt(codec: Codec, parts, d1=D1, d2=D2):
    """What was stored, as matrices in float64."""
    left, right = codec.factors(parts, d1, d2)
    return left.double() if right is None else left.double() @ right.double().mT


@every
def test_parts_are_what_the_layout_says(codec):
    layout, parts = codec.layout(D1, D2), codec.encode(gradients())
    assert list(parts) == list(layout)
    for name, (dtype, shape) in layout.items():
        assert parts[name].dtype == dtype and parts[name].shape == (12, *shape) and parts[name].device.type == "cpu"
    assert codec.bytes_per_example(D1, D2) * 12 == sum(part.nbytes for part in parts.values())


@every
def test_scores_are_inner_products_with_what_was_stored(codec):
    parts = codec.encode(gradients())
    queries = torch.randn(5, D1, D2, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(5, 12, dtype=torch.float64)
    stored = rebuilt(codec, parts)
    for q in range(5):
        for i in range(12):
            expected[q, i] = sum(queries[q, r, k].double() * stored[i, r, k] for r in range(D1) for k in range(D2))
    found = codec.scores(queries, parts)
    assert found.dtype == torch.float32 and found.shape == (5, 12)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@every
def test_an_example_is_encoded_alone(codec):
    matrices = gradients()
    whole, alone = codec.encode(matrices), [codec.encode(matrices[i : i + 1]) for i in range(12)]
    for name, part in whole.items():
        again = torch.cat([one[name] for one in alone])
        if part.dtype == torch.uint8:
            assert torch.equal(part, again), name
        else:
            torch.testing.assert_close(part, again, rtol=1e-2 if part.dtype == torch.bfloat16 else 1e-3, atol=1e-6)


@every
@pytest.mark.parametrize("kind", ["zero", "rank one", "one number"])
def test_gradients_of_low_rank_are_never_nan(codec, kind):
    matrices = torch.zeros(2, D1, D2)
    if kind == "rank one":
        matrices += torch.linspace(-1, 2, D1).view(-1, 1) * torch.linspace(1, 3, D2)
    elif kind == "one number":
        matrices[:, 4, 2] = -3.0
    stored = rebuilt(codec, codec.encode(matrices))
    assert bool(stored.isfinite().all())
    if kind == "zero":
        assert float(stored.abs().max()) == 0
        assert float(codec.scores(torch.ones(1, D1, D2), codec.encode(matrices)).abs().max()) == 0
    else:
        coarse = isinstance(codec, PackedCodec)
        lost = float((stored - matrices).norm() / matrices.norm())
        assert lost < (1.0 if coarse else 1e-2), "something of the gradient must be kept"


@every
def test_no_example_is_encoded_and_scored(codec):
    parts = codec.encode(gradients()[:0])
    assert codec.scores(torch.ones(3, D1, D2), parts).shape == (3, 0)


def test_dense_gradients_are_stored_as_they_are():
    matrices = gradients()
    assert torch.equal(DenseCodec(torch.float32).encode(matrices)["g"], matrices)
    assert torch.equal(DenseCodec(torch.bfloat16).encode(matrices)["g"], matrices.bfloat16())


def test_factors_are_those_of_the_factorisation():
    matrices = gradients()
    left, right = factorize(matrices, 2)
    parts = FactorCodec(2, torch.bfloat16).encode(matrices)
    # A vector's numbers side by side.
    assert torch.equal(parts["u"], left.mT.bfloat16()) and torch.equal(parts["v"], right.mT.bfloat16())
    assert parts["u"].is_contiguous() and parts["u"].shape == (12, 2, D1)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("rank", [1, 3])
def test_packed_factors_are_quantised_factors_with_bfloat16_scales(bits, rank):
    matrices, codec = gradients(), PackedCodec(rank, bits)
    left, right = codec.factors(codec.encode(matrices), D1, D2)
    left_levels, right_levels, scales = quantized_factors(matrices, rank, bits)
    assert torch.equal(right, right_levels)
    assert torch.equal(left, left_levels * scales.bfloat16().float().unsqueeze(1))


@pytest.mark.parametrize("rank", [1, 3])
def test_every_bit_more_brings_the_stored_gradient_nearer(rank):
    matrices = gradients(200)
    codecs = [PackedCodec(rank, bits) for bits in (1, 2, 4, 8)] + [FactorCodec(rank, torch.float32)]
    errors = [float((rebuilt(codec, codec.encode(matrices)) - matrices).norm()) for codec in codecs]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.05 * errors[2]


@pytest.mark.parametrize(
    "codec, expected",
    [
        (DenseCodec(torch.bfloat16), 2 * 96 * 32),
        (FactorCodec(2, torch.float32), 4 * 2 * (96 + 32)),
        (PackedCodec(4, 4), 4 * (48 + 16 + 2)),
        (PackedCodec(16, 1), 16 * (12 + 4 + 2)),
    ],
)
def test_bytes_of_an_example(codec, expected):
    assert codec.bytes_per_example(96, 32) == expected


@pytest.mark.parametrize(
    "choices, codec",
    [
        ({}, FactorCodec(1, torch.bfloat16)),
        ({"factor_rank": 3, "dtype": "float16"}, FactorCodec(3, torch.float16)),
        ({"factor_rank": None, "dtype": "float32"}, DenseCodec(torch.float32)),
        ({"factor_rank": 4, "bits": 2}, PackedCodec(4, 2)),
    ],
)
def test_the_config_chooses_the_codec(choices, codec):
    assert plain_config(**choices).codec() == codec


@every
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
def test_norms_are_those_of_what_was_stored(codec, scale):
    if scale != 1 and getattr(codec, "dtype", None) == torch.float16:
        return
    parts = codec.encode(torch.cat([gradients() * scale, torch.zeros(1, D1, D2)]))
    expected = rebuilt(codec, parts).flatten(1).norm(dim=1)
    found = codec.norms(parts, D1, D2)
    assert found.dtype == torch.float64 and found[-1] == 0
    assert bool((found >= expected).all()), "a bound that is too small would lose rows"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_norm_of_pairs_that_cancel_is_not_lost_in_rounding():
    u, v = torch.randn(1, 9, 1), torch.randn(1, 7, 1)
    parts = {
        "u": torch.cat([u, -u], dim=2).mT.contiguous(),
        "v": torch.cat([v, v * (1 - 1e-6)], dim=2).mT.contiguous(),
    }
    codec = FactorCodec(2, torch.float32)
    expected = float(rebuilt(codec, parts).norm())
    assert expected <= float(codec.norms(parts, 9, 7)) <= expected + 1e-5


@pytest.mark.parametrize(
    "codec", [c for c in CODECS.values() if c.pairs], ids=[n for n, c in CODECS.items() if c.pairs]
)
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_no_product_is_above_the_sizes_times_the_spectral_norm(codec, scale):
    if scale != 1 and getattr(codec, "dtype", None) == torch.float16:
        return
    parts = codec.encode(torch.cat([gradients() * scale, torch.zeros(1, D1, D2)]))
    sizes, scores = torch.full((13,), torch.nan), torch.zeros(2, 13)
    queries = torch.randn(2, D1, D2, generator=torch.Generator().manual_seed(3))
    group = QueryGroup(torch.arange(2), queries)
    codec.add_scores(scores, [group], parts, D1, D2, Workspace(), sizes)
    torch.testing.assert_close(scores, codec.scores(queries, parts))
    nuclear = torch.linalg.svdvals(rebuilt(codec, parts)).sum(dim=1)
    assert bool((sizes.double() >= nuclear * (1 - 1e-6)).all())
    norms = torch.linalg.svdvals(queries)[:, :1]
    assert bool((scores.abs() <= sizes * norms * (1 + 1e-5)).all())


@every
@pytest.mark.parametrize("block_numbers", [1, 100, 1 << 20])
def test_scores_do_not_depend_on_the_blocks_nor_on_the_form_of_the_queries(monkeypatch, codec, block_numbers):
    parts = codec.encode(gradients())
    thin = torch.randn(40, D1, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(40, 2, D2)
    expected = thin.double().flatten(1) @ rebuilt(codec, parts).flatten(1).T
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
    whole = [QueryGroup(torch.arange(0, 40, 2), thin[::2])]
    left, right = range_factors(thin[1::2], 3)
    mixed = [*whole, QueryGroup(torch.arange(1, 40, 2), left, right)]
    found = torch.zeros(40, 12)
    codec.add_scores(found, mixed, parts, D1, D2, Workspace())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@every
@pytest.mark.parametrize("thin", [False, True])
def test_rows_are_scored_from_any_on_whatever_the_buffers_held(codec, thin):
    """The rows that fill a block up hold what was scored before: here numbers that are not finite."""
    parts = codec.encode(gradients(150))
    queries = torch.randn(2, D1, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, 2, D2)
    group = QueryGroup(torch.arange(2), *(range_factors(queries, 3) if thin else (queries,)))
    expected, workspace = codec.scores(queries, parts), Workspace()
    poisoned = {
        name: part if part.dtype == torch.uint8 else torch.full_like(part, torch.nan) for name, part in parts.items()
    }
    spoilt = torch.zeros(2, 150)
    codec.add_scores(spoilt, [group], poisoned, D1, D2, workspace)
    assert bool(spoilt.isnan().all())
    for first, count in ((0, 1), (70, 66), (149, 1)):
        found = torch.zeros(2, count)
        codec.add_scores(found, [group], parts, D1, D2, workspace, first=first)
        torch.testing.assert_close(found, expected[:, first : first + count], rtol=1e-4, atol=1e-5)


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
