"""Weights followed through functions: what is recorded of them is autograd's gradient, whatever is done with them."""

import pytest
import torch
import torch.nn.functional as F
from recordings import draw
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorif_hf.layers import Linear
from lorif_hf.layers.modules import Holders, TrackedModule
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


B, T, SIZE_IN, SIZE_OUT = 3, 5, 4, 6


class Used(nn.Module):
    """A layer whose weight (O, I) is used by `how`, and a few numbers made of what comes out, row by row."""

    def __init__(self, how, out_features=SIZE_OUT):
        super().__init__()
        self.layer = nn.Linear(SIZE_IN, out_features)
        self.how = how

    def forward(self, x):
        y = self.how(self.layer, x)
        return (y.float().sin() * torch.arange(1, y[0].numel() + 1).view(y[0].shape)).flatten(1).sum(dim=1)


WAYS = {
    "its own call": lambda layer, x: layer(x),
    "linear": lambda layer, x: F.linear(x, layer.weight, layer.bias),
    "linear, by name": lambda layer, x: F.linear(input=x, weight=layer.weight),
    "x @ W.T": lambda layer, x: x @ layer.weight.T,
    "x @ W.t()": lambda layer, x: torch.matmul(x, layer.weight.t()),
    "matmul of a transpose": lambda layer, x: x.matmul(layer.weight.transpose(0, 1)),
    "W @ x": lambda layer, x: layer.weight @ x.mT,
    "addmm": lambda layer, x: torch.addmm(layer.bias, x.flatten(0, 1), layer.weight.T).view(B, T, -1),
    "mm": lambda layer, x: torch.mm(x.flatten(0, 1), layer.weight.T).view(B, T, -1),
    "in another dtype": lambda layer, x: F.linear(x.double(), layer.weight.double()),
    "scaled before and after": lambda layer, x: 3 * F.linear(x * 2, layer.weight),
    "twice": lambda layer, x: F.linear(x, layer.weight) + F.linear(x.cos(), layer.weight),
    "called and used": lambda layer, x: layer(x) * (x.sin() @ layer.weight.T),
    "changed in place": lambda layer, x: F.linear(x, layer.weight).mul_(2).add_(1),
}


def batch_of(x):
    return {"x": x, "input_ids": torch.zeros(B, T)}  # which says how many tokens a flattened input has


def recorded(model, x, loss=lambda model, batch: model(batch["x"])):
    tracked = TrackedModule.of("layer", Linear(), model.layer, Holders(model), followed=True)
    with GradientRecorder(model, [tracked], draw([tracked], 1), LossObjective(task_of(model, loss))) as recorder:
        return recorder.record(batch_of(x)).gradients["layer"]


def autograd(model, x):
    rows = []
    for i in range(len(x)):
        whole = model(x)  # rows do not see each other
        (gradient,) = torch.autograd.grad(whole[i], [model.layer.weight])
        rows.append(gradient.T)
    return torch.stack(rows)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_the_gradient_is_that_of_autograd(how):
    torch.manual_seed(len(WAYS))
    model, x = Used(how), torch.randn(B, T, SIZE_IN)
    torch.testing.assert_close(recorded(model, x).float(), autograd(model, x), rtol=1e-5, atol=1e-4)


BOTH_SIDES = {
    "linear": lambda layer, x: F.linear(layer(x).sin(), layer.weight.T),
    "x @ W": lambda layer, x: layer(x).sin() @ layer.weight,
    "W.T @ x": lambda layer, x: layer.weight.T @ layer(x).sin().mT,
    "in another dtype": lambda layer, x: layer(x).sin().double() @ layer.weight.double(),
}


@pytest.mark.parametrize("out_features", [SIZE_OUT, SIZE_IN], ids=["oblong", "square"])
@pytest.mark.parametrize("how", BOTH_SIDES.values(), ids=BOTH_SIDES)
def test_a_weight_may_be_used_from_either_side(how, out_features):
    torch.manual_seed(0)
    model, x = Used(how, out_features), torch.randn(B, T, SIZE_IN)
    torch.testing.assert_close(recorded(model, x).float(), autograd(model, x), rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        model.layer.weight.copy_(torch.randn(out_features, SIZE_IN))
    torch.testing.assert_close(recorded(model, x).float(), autograd(model, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "how",
    [
        lambda layer, x: torch.einsum("bti,oi->bto", x, layer.weight),
        lambda layer, x: F.linear(x, layer.weight[:2]),
        lambda layer, x: F.linear(x, layer.weight * 2),
    ],
    ids=["einsum", "a part", "something made of it"],
)
def test_what_is_not_followed_is_left_to_the_check(how):
    model, x = Used(how), torch.randn(B, T, SIZE_IN)
    gradients = recorded(model, x, lambda model, batch: model(batch["x"]) + model.layer(batch["x"]).flatten(1).sum(1))
    expected = torch.einsum("bti->bi", x).unsqueeze(2).expand(B, SIZE_IN, SIZE_OUT)  # of the module's call alone
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)


def test_one_weight_of_two_layers_has_the_gradient_of_both():
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = nn.Linear(SIZE_IN, SIZE_IN), nn.Linear(SIZE_IN, SIZE_IN)
            self.other.weight = self.layer.weight

        def forward(self, x):
            return self.other(self.layer(x).sin()).cos().flatten(1).sum(dim=1)

    model, x = Two(), torch.randn(B, T, SIZE_IN)
    expected = autograd(model, x)
    torch.testing.assert_close(recorded(model, x), expected)
    tracked = TrackedModule.of("layer", Linear(), model.layer, Holders(model))  # by both modules' calls
    objective = LossObjective(task_of(model, lambda model, batch: model(batch["x"])))
    with GradientRecorder(model, [tracked], draw([tracked], 1), objective) as recorder:
        torch.testing.assert_close(recorder.record(batch_of(x)).gradients["layer"], expected)


def test_under_checkpoints_the_layer_runs_again_and_counts_once():
    torch.manual_seed(0)
    model = Used(lambda layer, x: checkpoint(lambda x: F.linear(x, layer.weight).tanh(), x, use_reentrant=False))
    x = torch.randn(B, T, SIZE_IN)
    torch.testing.assert_close(recorded(model, x.requires_grad_()), autograd(model, x))
