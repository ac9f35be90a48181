"""Rows with random numbers in them, drawn once."""

import random

import numpy as np
import pytest
import torch

from lorif_hf.errors import DatasetError
from lorif_hf.recording.drawn_rows import drawn_once, draws_random


class Noise:
    """Draws from every generator that there is, one of its own that it makes when first asked among them."""

    def __init__(self):
        self.own = None

    def __call__(self, row):
        self.own = self.own or np.random.default_rng(0)
        drawn = [random.random(), np.random.rand(), float(torch.rand(())), float(self.own.random()), float(row)]
        return "features", {"x": torch.tensor([drawn])}


def test_a_row_is_the_same_whenever_and_with_whomever_it_is_asked_for():
    noise = Noise()
    assert draws_random(noise, [0, 1], noise) and noise.own is None
    first = [batch["x"] for _, batch in drawn_once(noise, [3, 1, 2], noise)]
    random.random(), torch.rand(4)
    again, other = Noise(), [batch["x"] for _, batch in drawn_once(noise, [1], noise)]
    assert torch.equal(other[0], first[1])
    turned = [batch["x"] for _, batch in drawn_once(again, [2, 3], again)]
    assert torch.equal(turned[0], first[2]) and torch.equal(turned[1], first[0])
    assert len({tuple(row[0, :4].tolist()) for row in first}) == 3  # each row has its own


def test_random_numbers_are_noticed_without_a_trace():
    def fixed(row):
        return {"x": torch.tensor([row])}, {"x": torch.tensor([row]), "name": "a"}

    assert not draws_random(fixed, [0, 1])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert draws_random(lambda row: ({}, {"x": torch.rand(1)}), [0]) and torch.equal(torch.get_rng_state(), state)
    assert draws_random(lambda row: ({}, {"x": random.random()}), [0])  # also of what is no tensor


@pytest.mark.parametrize("bad", [[0], [0, 1]])
def test_a_row_that_cannot_be_read_is_told_when_its_turn_comes(bad):
    def read(row):
        if row in bad:
            raise DatasetError(f"Row {row} is bad.")
        return {}, {"x": torch.rand(1)}

    assert draws_random(read, [0, 1]) is (1 not in bad)
    with pytest.raises(DatasetError, match="Row 0 is bad"):
        drawn_once(read, [1, 0] if bad == [0] else [0])
