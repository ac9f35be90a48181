"""The gradient of a convolution's weight is X^T dY of its windows."""

import pytest
import torch
from layer_gradients import both_gradients, spread
from torch import nn

from lorif_hf.layers import BatchShape, Convolution, kind_of
from lorif_hf.layers.base import is_plain
from lorif_hf.layers.convolution import Windows, is_convolution


CASES = {
    "1d": (nn.Conv1d(4, 6, 3), (3, 4, 9)),
    "strided, padded, dilated": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (3, 4, 9)),
    "same, of an even kernel": (nn.Conv1d(4, 6, 4, padding="same"), (3, 4, 9)),
    "valid": (nn.Conv1d(4, 6, 3, padding="valid"), (3, 4, 9)),
    "images": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 4, 7, 6)),
    "padded by reflection": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 7, 6)),
    "padded around": (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular"), (3, 4, 7, 6)),
    "patches": (nn.Conv2d(4, 6, 2, stride=2), (3, 4, 6, 5)),
    "video": (nn.Conv3d(4, 6, (2, 3, 1), padding=(0, 1, 0), stride=(1, 2, 1)), (3, 4, 3, 6, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (3, 4, 5, 6)),
    "depthwise": (nn.Conv1d(4, 4, 4, groups=4, padding=3), (3, 4, 9)),
    "depthwise, twice as wide": (nn.Conv1d(4, 8, 2, groups=4), (3, 4, 9)),
    "one element, in groups": (nn.Conv1d(4, 4, 1, groups=2), (3, 4, 9)),
    "one position": (nn.Conv2d(4, 6, 3), (3, 4, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_autograd(case):
    module, shape = CASES[case]
    assert kind_of(module).name == "convolution"
    torch.testing.assert_close(*both_gradients(spread(module), "weight", torch.randn(shape)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_of_a_single_input_without_an_axis_for_examples(groups):
    module = spread(nn.Conv1d(4, 6, 3, groups=groups))
    torch.testing.assert_close(*both_gradients(module, "weight", torch.randn(4, 9), examples=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_of_frames_of_a_single_example(groups):
    """A model that puts the frames of a video where the examples are."""
    module = spread(nn.Conv2d(4, 6, 3, groups=groups))
    found, expected = both_gradients(module, "weight", torch.randn(5, 4, 6, 6), examples=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    kind, x = Convolution(), torch.randn(6, 4, 6, 6)
    tokens = kind.tokens(module, "weight", (x,), {}, BatchShape(3, None))
    assert tokens.inputs is None and tokens.output_gradients(module(x)) is None


@pytest.mark.parametrize("groups", [1, 2])
def test_an_input_that_is_changed_afterwards(groups):
    module, x = spread(nn.Conv1d(4, 6, 1, groups=groups)), torch.randn(3, 4, 9)
    tokens = Convolution().tokens(module, "weight", (x,), {}, BatchShape(3, None))
    gradient, version = torch.randn(3, 6, 9), None if groups > 1 else tokens.inputs._version
    before = tokens.output_gradients(gradient).clone()
    x.zero_()
    # In one group the hook sees that X was changed; in several it is no longer needed.
    assert tokens.inputs._version != version if groups == 1 else torch.equal(tokens.output_gradients(gradient), before)


def test_several_groups_are_given_row_by_row():
    module, kind = nn.Conv1d(64, 64, 4, groups=64), Convolution()
    tokens = kind.tokens(module, "weight", (torch.randn(2, 64, 100),), {}, BatchShape(2, 100))
    assert kind.shape(module, "weight").features == kind.as_matrix(module.weight).shape == (4, 64)
    assert tokens.inputs.shape == (2, 4, 4) and tokens.output_gradients(torch.randn(2, 64, 97)).shape == (2, 4, 64)


def test_of_half_precision_the_gradients_are_summed_in_float32():
    module, x = nn.Conv1d(4, 4, 3, groups=4).bfloat16(), torch.randn(2, 4, 9).bfloat16()
    tokens = Convolution().tokens(module, "weight", (x,), {}, BatchShape(2, None))
    assert tokens.inputs.dtype == tokens.output_gradients(module(x)).dtype == torch.float32


class Padded(nn.Conv1d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1)))


def test_what_computes_otherwise_is_followed_or_none():
    for other in (nn.ConvTranspose1d(4, 6, 3), nn.Linear(4, 6)):
        assert not Convolution().accepts(other, "weight")
    assert kind_of(nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3))) is None

    class Named(nn.Conv1d):
        """With a name of its own alone."""

    assert is_plain(Convolution(), Named(4, 6, 3)) and not Convolution().accepts(Named(4, 6, 3), "bias")
    assert not is_plain(Convolution(), Padded(4, 6, 3)) and is_convolution(Named(4, 6, 3))
    assert not is_convolution(Padded(4, 6, 3))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", [0, 2, "same", "valid", (1,)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_windows_of_a_function(padding, groups):
    weight, x = torch.randn(6, 4 // groups, 4, requires_grad=True), torch.randn(3, 4, 9)
    options = {"padding": padding, "dilation": 2, "groups": groups, "stride": 1 if padding == "same" else 2}
    output = nn.functional.conv1d(x, weight, **options)
    returned = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, weight, returned)
    tokens = Windows.called(weight.shape[2:], **options).tokens(x, BatchShape(3, None))
    found = (tokens.inputs.mT @ tokens.output_gradients(returned)).sum(dim=0)
    torch.testing.assert_close(found, Convolution().as_matrix(expected), atol=1e-4, rtol=1e-4)
