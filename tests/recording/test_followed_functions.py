"""Vectors and convolutions followed through functions: what is recorded of them is autograd's gradient."""

import pytest
import torch
import torch.nn.functional as F
from recordings import draw
from torch import nn

from lorif_hf.layers import kind_of
from lorif_hf.layers.modules import TrackedModule
from lorif_hf.recording.followed_functions import uses_of
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


B, T, C = 3, 5, 4


class Uses(nn.Module):
    """A parameter that `how` uses, with what passes through (B, T, C)."""

    def __init__(self, shape, how):
        super().__init__()
        self.v = nn.Parameter(torch.randn(shape))
        self.how, self.part = how, nn.Linear(C, C)

    def forward(self, x):
        y = self.how(self, x)
        return (y.float().sin() * torch.arange(1, y[0].numel() + 1).view(y[0].shape)).flatten(1).sum(dim=1)


VECTORS = {
    "a scale": lambda m, x: x * m.v,
    "a scale, first": lambda m, x: m.v * x,
    "a shift": lambda m, x: x.cos() + m.v,
    "a shift, as a function": lambda m, x: torch.add(x, m.v, alpha=3),
    "by name": lambda m, x: torch.mul(input=x, other=m.v),
    "taken away": lambda m, x: m.v - x,
    "a quotient": lambda m, x: m.v / (x + 9),
    "features on another axis": lambda m, x: x.mT * m.v[None, :, None],
    "twice": lambda m, x: (x * m.v).cos() + m.v,
    "after a layer": lambda m, x: m.part(x) * m.v.view(1, 1, -1),
    "in another dtype": lambda m, x: x.double() * m.v.double(),
    "of a class token": lambda m, x: torch.cat([m.v.view(1, 1, -1).expand(len(x), 1, -1), x], dim=1),
    "as wide as": lambda m, x: m.v.expand_as(x) * x,
    "repeated": lambda m, x: m.v.view(1, 1, -1).repeat(len(x), 2, 1).cos(),
    "the bias of a product": lambda m, x: F.linear(x, m.part.weight, m.v),
    "the bias of a sum": lambda m, x: torch.addmm(m.v, x[:, 0], m.part.weight),
    "of a norm": lambda m, x: F.layer_norm(x, (C,), m.v),
    "the bias of a norm": lambda m, x: F.layer_norm(x, (C,), bias=m.v),
    "of a root mean square": lambda m, x: F.rms_norm(x, (C,), m.v),
    "of a norm of groups": lambda m, x: F.group_norm(x.mT, 2, m.v),
    "the bias of a convolution": lambda m, x: F.conv1d(x.mT, torch.ones(C, 2, 3), m.v, groups=2),
    "the bias of a transposed one": lambda m, x: F.conv_transpose1d(x.mT, torch.ones(C, C, 3), m.v),
    "changed in place": lambda m, x: (x * m.v).mul_(2).add_(1),
    "a part of it beside": lambda m, x: x * m.v + m.v[:1].detach(),
}


def compared(model, x, loss=None, parameter="v"):
    """What is recorded, and autograd's gradient of each row alone."""
    tracked = TrackedModule.of("uses", kind_of(model, parameter), model, parameter=parameter, followed=True)
    objective = LossObjective(task_of(model, loss or (lambda model, batch: model(batch["x"]))))
    with GradientRecorder(model, [tracked], draw([tracked], 1), objective) as recorder:
        found = recorder.record({"x": x}).gradients[tracked.name]
    rows = [torch.autograd.grad(model(row[None]).sum(), tracked.weight, allow_unused=True)[0] for row in x]
    return found, torch.stack([tracked.kind.as_matrix(row).float() for row in rows])


@pytest.mark.parametrize("how", VECTORS)
def test_of_a_vector(how):
    torch.manual_seed(0)
    model = Uses(C, VECTORS[how])
    before = model.v.detach().clone()
    found, expected = compared(model, torch.randn(B, T, C))
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)
    assert bool(expected.any()) and torch.equal(model.v, before) and model.v._version == 0


def test_in_16_bits():
    torch.manual_seed(0)
    model = Uses(C, lambda m, x: 500 * x + m.v).bfloat16()
    found, expected = compared(model, torch.randn(B, T, C).bfloat16())
    torch.testing.assert_close(found, expected.float(), atol=0.05, rtol=0.05)


CONVOLUTIONS = {
    "depthwise, as Mamba's": (
        (C, 1, 4),
        lambda m, x: F.conv1d(x.mT, m.v.squeeze(1).unsqueeze(1), padding=3, groups=C)[:, :, :T],
    ),
    "by name": ((6, C, 3), lambda m, x: F.conv1d(input=x.mT, weight=m.v, stride=2)),
    "as a matrix": ((6, C, 1), lambda m, x: F.linear(x, m.v.view(6, C))),
    "images": ((6, 1, 2, 2), lambda m, x: F.conv2d(x[:, None], m.v, stride=(2, 1), padding=(1, 0))),
    "padded before": ((6, C, 3), lambda m, x: F.conv1d(F.pad(x.mT, (2, 0)), m.v, dilation=2)),
}


@pytest.mark.parametrize("how", CONVOLUTIONS)
def test_of_a_convolution(how):
    torch.manual_seed(0)
    shape, use = CONVOLUTIONS[how]
    convolution = nn.Conv1d if len(shape) == 3 else nn.Conv2d

    class Holds(convolution):
        def forward(self, x):
            y = use(self, x)
            return (y.sin() * torch.arange(1, y[0].numel() + 1).view(y[0].shape)).flatten(1).sum(dim=1)

        @property
        def v(self):
            return self.weight

    groups = C if "depthwise" in how else 1
    model = Holds(shape[1] * groups, shape[0], shape[2:], groups=groups, bias=False)
    x = torch.randn(B, T, C)
    tracked = TrackedModule.of("uses", kind_of(model), model)
    assert tracked.followed
    objective = LossObjective(task_of(model, lambda model, batch: model(batch["x"])))
    with GradientRecorder(model, [tracked], draw([tracked], 1), objective) as recorder:
        found = recorder.record({"x": x}).gradients["uses"]
    rows = [tracked.kind.as_matrix(torch.autograd.grad(model(row[None]).sum(), model.weight)[0]) for row in x]
    torch.testing.assert_close(found, torch.stack(rows), atol=1e-4, rtol=1e-4)


TABLES = {
    "a sum": lambda m, x: x + m.position,
    "first": lambda m, x: m.position + x,
    "before a layer": lambda m, x: m.part(x + m.position).cos(),
    "after one": lambda m, x: m.part(x) + m.position,
    "without an axis of examples": lambda m, x: torch.add(x, m.position[0]),
}


@pytest.mark.parametrize("examples", [1, B])
@pytest.mark.parametrize("how", TABLES)
def test_of_a_table_of_positions(how, examples):
    torch.manual_seed(0)
    model, x = Uses(C, TABLES[how]), torch.randn(examples, T, C)
    model.position = nn.Parameter(torch.randn(1, T, C))
    torch.testing.assert_close(*compared(model, x, parameter="position"), atol=1e-4, rtol=1e-4)


UNSEEN = {
    "its square": (torch.mul, lambda v: (v, v)),
    "a divisor": (torch.div, lambda v: (torch.ones(3, C), v)),
    "another function": (torch.pow, lambda v: (v, 2)),
    "a matrix of it": (F.linear, lambda v: (torch.ones(3, C), v.view(1, C))),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_is_not_affine_is_not_seen(what):
    model = Uses(C, None)
    func, arguments = UNSEEN[what]
    tracked = TrackedModule.of("uses", kind_of(model, "v"), model, parameter="v")

    class Hook:
        pass

    hook = Hook()
    hook.tracked = tracked
    address = model.v.data_ptr()
    assert not list(uses_of(func, arguments(model.v), {}, lambda t: hook if t.data_ptr() == address else None))


def test_what_is_done_with_it_alone_is_no_use_of_an_example():
    """1 + v has no axis of examples: it is passed over, and the check of the first batch finds what is missing."""
    model = Uses(C, lambda m, x: x * (1 + m.v))
    found, expected = compared(
        model,
        torch.randn(B, T, C),
        lambda model, batch: model(batch["x"]) + batch["x"].requires_grad_().flatten(1).sum(dim=1),
    )
    assert not bool(found.any()) and bool(expected.any())
    alone, expected = compared(Uses(C, lambda m, x: x * (1 + m.v)), torch.randn(1, T, C))
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=1e-4)
