"""What a product of fused experts says is its X and dY: their X^T dY is autograd's gradient of the stack."""

import pytest
import torch
from mixtures import mixture
from torch import nn

from lorif_hf.algebra.sides import as_vectors
from lorif_hf.layers import BatchShape, Experts, ExpertsBias, TransposedExperts, kind_of
from lorif_hf.layers.experts import dispatches


EXPERTS = torch.tensor([[0, 2], [2, 3], [2, 0], [3, 2], [0, 3], [3, 0]])  # expert 1 has no token


def experts_of(name):
    return mixture(name).model.layers[0].mlp.experts


@pytest.mark.parametrize("name, kind", [("mixtral", Experts), ("gpt-oss", TransposedExperts)])
@pytest.mark.parametrize("batch", [BatchShape(2, 3), BatchShape(1, None)])
def test_the_gradient_is_that_of_autograd(name, kind, batch):
    module, kind = experts_of(name).double(), kind()
    weight = module.down_proj
    x = torch.randn(12, module.down_proj.shape[1 if kind.name == "experts-transposed" else 2], dtype=torch.float64)
    products = [
        x[i] @ weight[e] if kind.name == "experts-transposed" else weight[e] @ x[i]
        for i, e in enumerate(EXPERTS.flatten())
    ]
    output = torch.stack(products)
    returned = torch.randn(output.shape, dtype=torch.float64)
    (expected,) = torch.autograd.grad(output, [weight], returned)
    tokens = kind.tokens(module, "down_proj", (x, EXPERTS), {}, batch)
    gradients = as_vectors(tokens.output_gradients(returned))
    assert tokens.inputs.shape[:2] == gradients.shape[:2] == (batch.examples, 12 // batch.examples)
    assert kind.accepts(module, "down_proj") and kind_of(module, "down_proj").name == kind.name
    shape = kind.shape(module, "down_proj")
    assert shape.features == kind.as_matrix(weight).shape and shape.widths == (x.shape[1], returned.shape[1])
    torch.testing.assert_close((tokens.inputs.mT @ gradients).sum(dim=0), kind.as_matrix(expected))


def test_the_biases_see_their_expert_alone():
    module, kind, batch = experts_of("gpt-oss"), ExpertsBias(), BatchShape(2, 3)
    bias = module.down_proj_bias
    returned = torch.randn(12, bias.shape[1])
    (expected,) = torch.autograd.grad(bias[EXPERTS.flatten()], [bias], returned)
    tokens = kind.tokens(module, "down_proj_bias", (torch.randn(12, 24), EXPERTS), {}, batch)
    found = (as_vectors(tokens.inputs).mT @ tokens.output_gradients(returned)).sum(dim=0)
    assert kind.accepts(module, "down_proj_bias") and not kind.accepts(module, "down_proj") and not kind.linear
    assert kind.shape(module, "down_proj_bias").features == (4, 16)
    torch.testing.assert_close(found, kind.as_matrix(expected))


@pytest.mark.parametrize("kind", [Experts(), ExpertsBias()])
def test_tokens_that_cannot_be_told_apart(kind):
    module = experts_of("gpt-oss")
    tokens = kind.tokens(module, "down_proj_bias", (torch.randn(12, 24), EXPERTS), {}, BatchShape(4, 3))
    assert tokens.inputs is None and tokens.output_gradients(torch.randn(12, 16)) is None


def test_only_modules_that_ask_the_registry():
    class Alike(nn.Module):
        is_transposed = False

        def __init__(self):
            super().__init__()
            self.down_proj = nn.Parameter(torch.zeros(2, 3, 4))

        def forward(self, x):
            return x @ self.down_proj[0].mT

    assert dispatches(experts_of("mixtral")) and not dispatches(Alike())
    assert not Experts().accepts(Alike(), "down_proj") and not Experts().accepts(experts_of("gpt-oss"), "down_proj")
    quantised = experts_of("mixtral")
    for dtype in (torch.int8, torch.float8_e4m3fn):
        quantised.down_proj = nn.Parameter(torch.zeros(4, 16, 24).to(dtype), requires_grad=False)
        assert not Experts().accepts(quantised, "down_proj")
