"""How scores are spread, block by block: what numpy says of all of them at once, whatever their order."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lorif_hf.algebra import distribution
from lorif_hf.algebra.distribution import BINS, RunningDistribution


def spreads_of(scores, splits):
    running = RunningDistribution(len(scores))
    for block in scores.split(splits, dim=1):
        running.update(block)
    return running.spreads()


def drawn(scale, shift, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 700, generator=generator) ** 3 * scale + shift


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-38, 0.0), (1e30, 0.0), (1e-3, 1e4), (1.0, -5.0)], ids=str)
def test_a_spread_is_that_of_all_scores(scale, shift):
    scores = drawn(scale, shift)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    whole = spreads_of(scores, 700)
    for query, spread in enumerate(whole):
        exact = scores[query].double()
        assert spread.count == 700 == sum(spread.counts) and len(spread.counts) <= BINS
        assert spread.mean == pytest.approx(float(exact.mean()), rel=1e-13, abs=1e-14 * float(exact.std()))
        assert spread.standard_deviation == pytest.approx(float(exact.std(correction=0)), rel=1e-12)
        edges = np.array(spread.edges)
        counted = [int(((exact >= low) & (exact < high)).sum()) for low, high in pairwise(edges)]
        assert spread.counts == counted and min(counted[0], counted[-1]) > 0
        assert len({float(width) for width in np.diff(edges)}) == 1
        assert len(counted) > BINS / 2 or scale < 1e-3 * abs(shift) or scale < 1e-30
    for block in (scores[:, order], scores.flip(1)):
        for spread, same in zip(whole, spreads_of(block, 37), strict=True):
            assert (spread.edges, spread.counts) == (same.edges, same.counts)
            assert spread.mean == pytest.approx(same.mean, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 7.0, -3e38, 1e-45])
def test_equal_scores_fill_one_bin(value):
    (spread,) = spreads_of(torch.full((1, 9), value), 4)
    assert spread.counts == [9] and spread.standard_deviation == 0
    assert spread.edges[0] <= float(torch.tensor(value)) < spread.edges[1]


def test_parts_that_were_seen_apart_are_joined():
    scores = drawn(1.0, 0.0)
    parts = [RunningDistribution(3) for _ in range(3)]
    parts[0].update(scores[:, :650])
    parts[1].update(scores[:, 650:])
    parts[1].merge(parts[0])
    parts[1].merge(parts[2])  # which saw nothing
    for joined, whole in zip(parts[1].spreads(), spreads_of(scores, 700), strict=True):
        assert joined.counts == whole.counts and joined.edges == whole.edges
        assert joined.standard_deviation == pytest.approx(whole.standard_deviation, rel=1e-12)


def test_many_queries_are_looked_at_a_few_at_a_time(monkeypatch):
    scores = drawn(2.0, 1.0)
    whole = spreads_of(scores, 700)
    monkeypatch.setattr(distribution, "_TOGETHER", 700)
    assert spreads_of(scores, 700) == whole


def test_of_no_scores_there_is_no_spread():
    running = RunningDistribution(2)
    running.update(torch.empty(2, 0))
    assert running.spreads() == [] and RunningDistribution(0).spreads() == []


def test_what_is_no_number_does_not_end_the_process():
    """Whoever scores refuses it afterwards."""
    running = RunningDistribution(1)
    running.update(torch.tensor([[1.0, math.nan, math.inf, -math.inf]]))
    running.update(torch.tensor([[1.0, 2.0]]))
