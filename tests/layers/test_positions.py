"""Tables of positions: which parameters are, and that they are followed."""

import pytest
import torch
from torch import nn

from lorif_hf.layers import BatchShape, Positions, kind_of
from lorif_hf.layers.modules import TrackedModule


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.position_embeddings, self.pos_embed = nn.Parameter(torch.ones(1, 5, 3)), nn.Parameter(torch.ones(5, 3))
        self.position_grid, self.table = nn.Parameter(torch.ones(2, 5, 3)), nn.Parameter(torch.ones(1, 5, 3))


def test_what_is_a_table_of_positions():
    module = Embeddings()
    for name in ("position_embeddings", "pos_embed"):
        assert kind_of(module, name).name == "positions"
        assert Positions().shape(module, name).features == Positions().as_matrix(getattr(module, name)).shape == (5, 3)
        assert TrackedModule.of("embeddings", Positions(), module, parameter=name).followed
    assert kind_of(module, "position_grid") is None and kind_of(module, "table") is None


def test_its_modules_calls_are_not_recorded():
    with pytest.raises(AssertionError, match="followed"):
        Positions().tokens(Embeddings(), "pos_embed", (), {}, BatchShape(1, None))
