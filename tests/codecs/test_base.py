"""What every codec does: what it stores, against the gradients it stands for, and its scores, in float64."""

from dataclasses import dataclass

import pytest
import torch
from codec_scores import fast_scores, rebuilt
from stored import D1, D2, gradients
from tiny import plain_config

from lorif_hf import InfluenceConfig, codecs
from lorif_hf.algebra import scoring
from lorif_hf.algebra.scoring import QueryGroup, Workspace
from lorif_hf.algebra.thin_queries import range_factors
from lorif_hf.codecs import Codec, DenseCodec, FactoredCodec, PackedCodec, codec_of
from lorif_hf.codecs.base import filled_up, widened
from lorif_hf.errors import ConfigError, UnknownKindError
from lorif_hf.registry import CODECS


KINDS = {
    "dense float32": DenseCodec(torch.float32),
    "dense bfloat16": DenseCodec(torch.bfloat16),
    "factors float32": FactoredCodec(3, torch.float32),
    "factors float16": FactoredCodec(1, torch.float16),
    **{f"{bits} bits, rank {rank}": PackedCodec(rank, bits) for bits in (8, 4, 2, 1) for rank in (1, 3, D2)},
}
every = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)


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
    stored = rebuilt(codec, parts, D1, D2)
    for q in range(5):
        for i in range(12):
            expected[q, i] = sum(queries[q, r, k].double() * stored[i, r, k] for r in range(D1) for k in range(D2))
    scores = fast_scores(codec, queries, parts, D1, D2)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@every
def test_an_example_is_encoded_alone(codec):
    matrices = gradients()
    whole, alone = codec.encode(matrices), [codec.encode(matrices[i : i + 1]) for i in range(12)]
    for name, part in whole.items():
        again = torch.cat([parts[name] for parts in alone])
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
    parts = codec.encode(matrices)
    stored = rebuilt(codec, parts, D1, D2)
    assert bool(stored.isfinite().all())
    if kind == "zero":
        assert float(stored.abs().max()) == 0
        assert float(fast_scores(codec, torch.ones(1, D1, D2), parts, D1, D2).abs().max()) == 0
    else:
        # Scales over the share that coarse pairs hold give a gradient's inner product with itself its size back.
        kept = float((stored * matrices).sum() / matrices.square().sum())
        assert abs(kept - 1) < (0.99 if isinstance(codec, PackedCodec) else 1e-2), "something of it must be kept"


@every
def test_no_example_is_encoded_and_scored(codec):
    parts = codec.encode(gradients()[:0])
    assert fast_scores(codec, torch.ones(3, D1, D2), parts, D1, D2).shape == (3, 0)


@every
@pytest.mark.parametrize("block_numbers", [1, 100, 1 << 20])
def test_scores_do_not_depend_on_the_blocks_nor_on_the_form_of_the_queries(monkeypatch, codec, block_numbers):
    parts = codec.encode(gradients())
    thin = torch.randn(40, D1, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(40, 2, D2)
    expected = thin.double().flatten(1) @ rebuilt(codec, parts, D1, D2).flatten(1).T
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", block_numbers)
    whole = [QueryGroup(torch.arange(0, 40, 2), thin[::2])]
    left, right = range_factors(thin[1::2], 3)
    mixed = [*whole, QueryGroup(torch.arange(1, 40, 2), left, right)]
    scores = torch.zeros(40, 12)
    codec.add_scores(scores, mixed, parts, D1, D2, Workspace())
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@every
@pytest.mark.parametrize("thin", [False, True])
def test_rows_are_scored_from_any_on_whatever_the_buffers_held(codec, thin):
    """The rows that fill a block up hold what was scored before: here numbers that are not finite."""
    parts = codec.encode(gradients(150))
    queries = torch.randn(2, D1, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, 2, D2)
    group = QueryGroup(torch.arange(2), *(range_factors(queries, 3) if thin else (queries,)))
    expected, workspace = fast_scores(codec, queries, parts, D1, D2), Workspace()
    poisoned = {
        name: part if part.dtype == torch.uint8 else torch.full_like(part, torch.nan) for name, part in parts.items()
    }
    spoilt = torch.zeros(2, 150)
    codec.add_scores(spoilt, [group], poisoned, D1, D2, workspace)
    assert bool(spoilt.isnan().all())
    for first, count in ((0, 1), (70, 66), (149, 1)):
        scores = torch.zeros(2, count)
        codec.add_scores(scores, [group], parts, D1, D2, workspace, first=first)
        torch.testing.assert_close(scores, expected[:, first : first + count], rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("d1, d2", [(24, 16), (12, 36), (50, 50)])
@pytest.mark.parametrize("queries", [1, 3, 30])
def test_equal_examples_get_equal_scores_wherever_they_stand(codec, d1, d2, queries):
    """To the last bit: ties go to the lower row. (Not so where a side is odd.)"""
    generator = torch.Generator().manual_seed(1)
    alone = codec.encode(torch.randn(1, d1, d2, generator=generator))
    parts = {name: part.repeat(150, *[1] * (part.dim() - 1)) for name, part in alone.items()}
    scores = fast_scores(codec, torch.randn(queries, d1, d2, generator=generator), parts, d1, d2)
    assert torch.equal(scores, scores[:, :1].expand(-1, 150))


@pytest.mark.parametrize(
    "codec, expected",
    [
        (DenseCodec(torch.bfloat16), 2 * 96 * 32),
        (FactoredCodec(2, torch.float32), 4 * 2 * (96 + 32)),
        (PackedCodec(4, 4), 4 * (48 + 16 + 2)),
        (PackedCodec(16, 1), 16 * (12 + 4 + 2)),
    ],
)
def test_bytes_of_an_example(codec, expected):
    assert codec.bytes_per_example(96, 32) == expected


@pytest.mark.parametrize(
    "choices, codec",
    [
        ({}, FactoredCodec(1, torch.bfloat16)),
        ({"factor_rank": 3, "dtype": "float16"}, FactoredCodec(3, torch.float16)),
        ({"factor_rank": 3, "codec": "factored"}, FactoredCodec(3, torch.bfloat16)),
        ({"factor_rank": None, "dtype": "float32"}, DenseCodec(torch.float32)),
        ({"factor_rank": None, "codec": "dense"}, DenseCodec(torch.bfloat16)),
        ({"factor_rank": 4, "bits": 2}, PackedCodec(4, 2)),
        ({"factor_rank": 4, "bits": 2, "codec": "packed"}, PackedCodec(4, 2)),
    ],
)
def test_the_config_chooses_the_codec(choices, codec):
    config = plain_config(**choices)
    assert codec_of(config) == codec and config.codec_name == codec.name


def test_an_unknown_codec_is_refused_with_the_known_ones():
    with pytest.raises(UnknownKindError) as caught:
        InfluenceConfig(codec="zip")
    assert str(caught.value).startswith("The codec 'zip' is not registered: known are dense, factored, packed.")
    assert "which must call lorif_hf.codecs.register." in str(caught.value)


@dataclass(frozen=True)
class Halved(Codec):
    """Keeps the upper half of the rows of a gradient, as a user might."""

    name = "halved"
    pairs = None
    products = 0

    @classmethod
    def from_config(cls, config):
        if config.factor_rank is not None:
            raise ConfigError("halved has no rank")
        return cls()

    def layout(self, d1, d2):
        return {"top": (torch.float32, (d1 // 2, d2))}

    def encode(self, matrices):
        return {"top": matrices[:, : matrices.shape[1] // 2].clone()}

    def factors(self, parts, d1, d2):
        return torch.nn.functional.pad(parts["top"], (0, 0, 0, d1 - d1 // 2)), None

    def unpacked(self, parts, rows, d1, d2, workspace):
        whole, _ = self.factors({"top": parts["top"][rows]}, d1, d2)
        return widened(whole, "left", workspace, scoring.DENSE_ROWS), None, None


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setattr(CODECS, "_kinds", dict(CODECS._kinds))
    codecs.register(Halved)


def test_a_codec_of_ones_own_is_found_by_its_name_scored_and_sized(halved):
    codec = codec_of(InfluenceConfig.logra(codec="halved"))
    assert codec == Halved() and codec.bytes_per_example(8, 5) == 4 * 4 * 5
    parts = codec.encode(gradients())
    queries = torch.randn(2, D1, D2, generator=torch.Generator().manual_seed(1))
    expected = queries.double().flatten(1) @ rebuilt(codec, parts, D1, D2).flatten(1).T
    torch.testing.assert_close(fast_scores(codec, queries, parts, D1, D2).double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="^halved has no rank$"):
        InfluenceConfig(codec="halved")


@pytest.mark.parametrize("count, rows, expected", [(0, 64, 0), (1, 64, 64), (64, 64, 64), (65, 64, 128), (17, 16, 32)])
def test_blocks_are_filled_up_to_whole_runs_of_rows(count, rows, expected):
    assert filled_up(count, rows) == expected
    part = torch.randn(count, 3, 2).bfloat16()
    wide = widened(part, "left", Workspace(), rows)
    assert wide.shape == (expected, 3, 2) and wide.dtype == torch.float32
    assert torch.equal(wide[:count], part.float())
