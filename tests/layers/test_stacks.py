"""Which stacked parameters are taken for experts that are multiplied one by one, and in which orientation."""

import pytest
import torch
import torch.nn.functional as F
from mixtures import mixture
from torch import nn

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import BatchShape, Stack, TransposedStack, kind_of
from lorif_hf.layers.modules import TrackedModule


class Own(nn.Module):
    def __init__(self, experts=3):
        super().__init__()
        self.num_experts = experts
        self.up = nn.Parameter(torch.randn(3, 5, 4))


class ByLinear(Own):
    def forward(self, x):
        return F.linear(x, self.up[0])


class ByProduct(Own):
    def forward(self, x):
        return x @ self.up[0]


class ByBatch(Own):
    def forward(self, x):
        return torch.bmm(x, self.up)


class ByEinsum(Own):
    def forward(self, x):
        return torch.einsum("nk,ekl->nel", x, self.up)


class Both(Own):
    def forward(self, x):
        return F.linear(x, self.up[0]) @ self.up[1]


@pytest.mark.parametrize(
    "cls, name",
    [
        (ByLinear, "stack"),
        (ByProduct, "stack-transposed"),
        (ByBatch, "stack-transposed"),
        (ByEinsum, None),
        (Both, "stack"),
    ],
)
def test_the_orientation_is_that_of_the_product(cls, name):
    kind = kind_of(cls(), "up")
    assert (None if kind is None else kind.name) == name
    if kind is not None:
        size_in, size_out = (4, 5) if name == "stack" else (5, 4)
        shape = kind.shape(cls(), "up")
        assert shape.features == (size_in, 3 * size_out) and shape.widths == (size_in, size_out)
        weight = torch.randn(3, 5, 4)
        blocks = [matrix.mT if name == "stack" else matrix for matrix in weight]
        assert torch.equal(kind.as_matrix(weight), torch.cat(blocks, dim=1))
        assert TrackedModule.of("layer", kind, cls(), parameter="up").followed


def test_what_is_no_stack_of_experts():
    assert kind_of(ByLinear(experts=4), "up") is None, "of another number than the module's experts"
    assert not Stack().accepts(mixture("mixtral").model.layers[0].mlp.experts, "down_proj"), "which asks the registry"
    assert kind_of(nn.Conv1d(2, 3, 1)) is None or kind_of(nn.Conv1d(2, 3, 1)).name not in ("stack", "stack-transposed")


@pytest.mark.parametrize("kind", [Stack(), TransposedStack()])
def test_calls_tell_nothing(kind):
    with pytest.raises(UnsupportedModuleError, match="products of a ByLinear are followed"):
        kind.tokens(ByLinear(), "up", (), {}, BatchShape(1, None))
