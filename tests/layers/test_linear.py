"""The weight gradient of a `Linear` is X^T dY of what the kind says are X and dY."""

import torch
from torch import nn

from lorif_hf.layers import BatchShape, Linear


def test_the_gradient_is_that_of_autograd():
    module, kind, x = nn.Linear(4, 3), Linear(), torch.randn(2, 5, 4)
    output = module(x)
    returned = torch.randn(output.shape)
    output.backward(returned)
    batch = BatchShape(2, 5)
    tokens = kind.tokens(module, "weight", (x,), {}, batch)
    inputs, gradients = tokens.inputs, tokens.output_gradients(returned)
    assert kind.accepts(module, "weight") and not kind.accepts(module, "bias")
    assert kind.shape(module, "weight").features == kind.as_matrix(module.weight).shape == (4, 3)
    torch.testing.assert_close((inputs.mT @ gradients).sum(dim=0), kind.as_matrix(module.weight.grad))


def test_the_projection_inside_multihead_attention_is_none():
    assert not Linear().accepts(nn.MultiheadAttention(4, 2).out_proj, "weight")
