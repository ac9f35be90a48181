"""Vectors of modules with parts or other parameters: which are, and that they are followed."""

import pytest
import torch
from torch import nn

from lorif_hf.layers import BatchShape, Vector, kind_of
from lorif_hf.layers.modules import TrackedModule


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Linear(3, 3)
        self.D, self.token, self.A = (nn.Parameter(torch.ones(size)) for size in ((3,), (1, 1, 3), (3, 2)))


def test_what_is_a_vector():
    module = Mixer()
    assert {name: kind_of(module, name) and kind_of(module, name).name for name in ("D", "token", "A")} == {
        "D": "vector",
        "token": "vector",
        "A": None,
    }
    for name in ("D", "token"):
        vector = getattr(module, name)
        assert Vector().shape(module, name).features == Vector().as_matrix(vector).shape == (1, 3)
    assert TrackedModule.of("mixer", Vector(), module, parameter="D").followed
    assert kind_of(nn.ConvTranspose2d(2, 3, 1), "bias").name == "vector"


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_is_none():
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    parametrized = computed.parametrizations["weight"]
    for module in (
        nn.ParameterList([torch.ones(3)]),
        nn.GRU(2, 3),
        nn.MultiheadAttention(4, 2),
        nn.MultiheadAttention(4, 2).out_proj,
        parametrized,
    ):
        assert not any(kind_of(module, name) for name in module._parameters)
    assert kind_of(nn.utils.weight_norm(nn.Linear(3, 2)), "weight_g") is None


def test_its_modules_calls_are_not_recorded():
    with pytest.raises(AssertionError, match="followed"):
        Vector().tokens(Mixer(), "D", (), {}, BatchShape(1, None))
