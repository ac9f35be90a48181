"""What is expected of a config: what the benchmarks measured, in their order."""

import pytest

from lorif_hf import InfluenceConfig
from lorif_hf.estimating.frontier import expected_quality
from lorif_hf.storage.layout import ModuleEntry


def quality(width=128, **changes):
    config = InfluenceConfig(**changes)
    return expected_quality(
        config, [ModuleEntry("a", "linear", width, width, *config.projected_shape(width, width), "")]
    )


def test_more_pairs_bits_and_directions_are_expected_to_be_better():
    for bits in (1, 2, 4):
        qualities = [quality(factor_rank=pairs, bits=bits) for pairs in (1, 2, 3, 4, 6, 8, 12, 16)]
        assert qualities == sorted(set(qualities))
    for pairs in (1, 2, 5, 8, 16):
        qualities = [quality(factor_rank=pairs, bits=bits) for bits in (1, 2, 4)]
        assert qualities == sorted(set(qualities))
    sides = (16, 32, 64, 100, 256, 512, 700, 768, 1024, 2048, 3072)
    qualities = [quality(4096, factor_rank=8, max_projection_dim=most) for most in sides[1:]]
    assert qualities == sorted(set(qualities))
    assert quality(whitening="none", curvature="none") < quality()


def test_a_layer_that_is_not_cut_loses_nothing():
    assert quality(512, max_projection_dim=768) == quality(512, max_projection_dim=None) == quality(128)
    assert quality(512, max_projection_dim=256) < quality(512)


@pytest.mark.parametrize(
    "better, worse",
    [
        # Of about equal bytes, as benchmarks/RESULTS.md (a) and the layers of 4,096 have it.
        ({"factor_rank": 4}, {"factor_rank": 2, "bits": 2}),
        ({"factor_rank": 8}, {"factor_rank": 4, "bits": 2}),
        ({"factor_rank": 16}, {"factor_rank": 4, "bits": 4}),
        ({"factor_rank": 3, "max_projection_dim": 768}, {"factor_rank": 9, "max_projection_dim": 256}),
        ({"factor_rank": 8, "max_projection_dim": 768}, {"factor_rank": 12, "max_projection_dim": 512}),
        ({"factor_rank": 5, "max_projection_dim": 768}, {"factor_rank": 2, "max_projection_dim": 2048}),
    ],
)
def test_of_equal_bytes_what_was_measured_to_be_better_is_expected_to_be(better, worse):
    assert quality(4096, **better) > quality(4096, **worse)
