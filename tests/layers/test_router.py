"""Routers: which modules are taken for one, and that their weight is followed."""

import torch
import torch.nn.functional as F
from mixtures import autograd, batch_of, errors_of, mixture, recorded, tracked_of
from torch import nn

from lorif_hf.layers import BatchShape, Router, kind_of
from lorif_hf.layers.modules import TrackedModule


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * 2


class Squared(Scaled):
    def forward(self, x):
        return x @ self.weight.T


def test_what_is_a_router():
    router = Router()
    assert router.accepts(Scaled(), "weight") and not router.accepts(Scaled(), "bias")
    assert not router.accepts(Squared(), "weight"), "another product than F.linear"
    assert not router.accepts(nn.Linear(4, 3), "weight") and not router.accepts(nn.Embedding(4, 3), "weight")
    assert not any(router.accepts(module, "weight") for module in (nn.LayerNorm(4), nn.Conv1d(1, 2, 3)))
    assert kind_of(nn.Linear(4, 3)).name == "linear"


def test_the_gradient_is_that_of_autograd():
    module, kind, x = Scaled(), Router(), torch.randn(2, 5, 4)
    returned = torch.randn(2, 5, 3)
    F.linear(x, module.weight).backward(returned)
    tokens = kind.tokens(module, "weight", (x,), {}, BatchShape(2, 5))
    assert kind.shape(module, "weight").features == (4, 3)
    gradient = (tokens.inputs.mT @ tokens.output_gradients(returned)).sum(dim=0)
    torch.testing.assert_close(gradient, kind.as_matrix(module.weight.grad))
    assert TrackedModule.of("layer", kind, module).followed


def test_routers_of_mixtures():
    for name in ("mixtral", "gpt-oss", "deepseek-v3"):
        model, batch = mixture(name), batch_of()
        tracked = [t for t in tracked_of(model, "all-linear") if t.kind.name == "router"]
        assert tracked
        assert (
            max(errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch)).values()) < 1e-5
        )
