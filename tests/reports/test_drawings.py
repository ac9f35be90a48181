"""Small pictures: bars where they should be, nothing outside of them, whatever the numbers."""

import math
import re

import pytest
import torch

from lorif_hf.reports.distribution import ScoreDistribution
from lorif_hf.reports.drawings import chance_maximum, histogram, layer_strip


def spread(edges, counts):
    return ScoreDistribution(sum(counts), 0.0, 1.0, edges, counts)


def test_bars_grow_with_the_logarithm_of_their_counts():
    drawn = histogram(spread([-1.0, 0.0, 1.0, 2.0], [10, 0, 100]), [2.0, -1.0])
    heights = [float(height) for height in re.findall(r"v-([\d.]+)h", drawn)]
    assert len(heights) == 2 and heights[0] / heights[1] == pytest.approx(math.log(11) / math.log(101), abs=0.01)
    assert "all 110 rows, from -1 to 2" in drawn
    assert re.findall(r'class=lf-(pro|con) d="M([\d.]+)', drawn) == [("pro", "240.0"), ("con", "0.0")]


def test_scores_outside_of_the_histogram_are_marked_at_its_ends():
    drawn = histogram(spread([0.0, 1.0], [3]), [5.0, -5.0])
    assert "M240.0 37" in drawn and "M0.0 37" in drawn and "lf-zero" not in drawn


def test_a_histogram_without_rows_or_width_is_drawn():
    assert "<svg" in histogram(spread([0.0, 0.0], [4]), []) and "<svg" in histogram(spread([0.0, 1.0], [0]), [])


def test_a_strip_has_a_bar_for_each_layer_up_or_down():
    drawn = layer_strip([1.0, -0.5, 0.0, 0.25])
    assert re.findall(r"M(\d+) 10v(-?[\d.]+)h", drawn) == [("0", "-10"), ("3", "-2.5"), ("1", "5")]
    assert 'viewBox="0 0 4 20"' in drawn


def test_neighbouring_layers_share_a_bar_where_there_are_many():
    drawn = layer_strip([1.0] * 200)
    assert 'viewBox="0 0 64 20"' in drawn and drawn.count("10v") == 64 and len(drawn) < 1500


def test_a_strip_without_scores_is_empty():
    assert "<path" not in layer_strip([]) and "<path" not in layer_strip([0.0, 0.0])


def test_the_largest_of_normal_values_is_where_it_is_said_to_be():
    draws = torch.randn(2000, 1000, generator=torch.Generator().manual_seed(0))
    assert chance_maximum(1000) == pytest.approx(draws.amax(1).mean().item(), abs=0.05)
    assert chance_maximum(1) == pytest.approx(0, abs=1e-9)
