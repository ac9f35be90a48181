"""The gradient of a bias is the sum of the output's gradients."""

import pytest
import torch
from layer_gradients import both_gradients, spread
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorif_hf.layers import BatchShape, Bias, kind_of


CASES = {
    "linear": (nn.Linear(4, 3), (3, 5, 4)),
    "linear without tokens": (nn.Linear(4, 3), (3, 4)),
    "conv1d of transformers": (Conv1D(3, 4), (3, 5, 4)),
    "images": (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (3, 4, 9, 8)),
    "depthwise": (nn.Conv1d(4, 4, 4, groups=4, padding=3), (3, 4, 7)),
    "same": (nn.Conv1d(4, 6, 4, padding="same", padding_mode="reflect"), (3, 4, 7)),
    "video": (nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2)), (3, 4, 2, 4, 5)),
    "a computed weight": (nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3)), (3, 4, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_autograd(case):
    module, shape = CASES[case]
    assert kind_of(module, "bias").name == "bias"
    torch.testing.assert_close(*both_gradients(spread(module), "bias", torch.randn(shape)))


def test_of_flattened_tokens():
    torch.testing.assert_close(
        *both_gradients(spread(nn.Linear(4, 3)), "bias", torch.randn(6, 4), examples=2, tokens=3)
    )


@pytest.mark.parametrize(
    "module, shape", [(nn.Linear(4, 3), (4,)), (nn.Conv1d(4, 3, 2), (4, 7))], ids=["linear", "conv"]
)
def test_of_a_single_input_without_an_axis_for_examples(module, shape):
    torch.testing.assert_close(*both_gradients(spread(module), "bias", torch.randn(shape), examples=1))


@pytest.mark.parametrize(
    "module, shape", [(nn.Linear(4, 3), (5, 4)), (nn.Conv1d(4, 3, 2), (5, 4, 7))], ids=["linear", "conv"]
)
def test_examples_that_cannot_be_told_apart(module, shape):
    tokens = Bias().tokens(module, "bias", (torch.randn(shape),), {}, BatchShape(3, None))
    assert tokens.inputs is None and tokens.output_gradients(module(torch.randn(shape))) is None


def test_what_is_none():
    assert not Bias().accepts(nn.MultiheadAttention(4, 2).out_proj, "bias")  # is never called
    assert not Bias().accepts(nn.Linear(2, 3), "weight") and not Bias().accepts(nn.ConvTranspose1d(2, 3, 1), "bias")
    assert not Bias().accepts(nn.GRU(2, 3), "bias_ih_l0")


def test_its_shape():
    module = nn.Linear(2, 3)
    assert Bias().shape(module, "bias").features == Bias().as_matrix(module.bias).shape == (1, 3)
