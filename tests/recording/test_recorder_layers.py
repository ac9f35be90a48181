"""What a layer may go through inside a model: shapes, reuse, in-place edits, checkpointing."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import Custom
from lorif_hf.tasks.objectives import LossObjective


LAYERS = {
    "linear": nn.Linear,
    "linear-no-bias": lambda i, o: nn.Linear(i, o, bias=False),
    "conv1d": lambda i, o: Conv1D(o, i),
}


class Net(nn.Module):
    """Three layers with whatever `middle` does to them, from 5 to 2 features."""

    def __init__(self, middle, make=LAYERS["linear"]):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = make(5, 6), make(6, 6), make(6, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.middle = middle

    def forward(self, x):
        return self.last(self.middle(self, x))


def _loss(model, batch):
    return (model(batch["x"]) ** 2).flatten(1).sum(1)


def _plain(net, x):
    return torch.tanh(net.second(torch.tanh(net.first(x))))


def _per_sample(model, x, loss=_loss):
    """Per-example weight gradients by torch.func, (I x O) each."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(parameters, row):
        return loss(lambda x: functional_call(model, parameters, (x,)), {"x": row[None]})[0]

    gradients = vmap(grad(one), in_dims=(None, 0))(parameters, x)
    weights = {t.name: gradients[f"{t.name}.weight"] for t in tracked_modules(model)}
    return {
        t.name: weights[t.name].transpose(1, 2) if t.kind.name == "linear" else weights[t.name]
        for t in tracked_modules(model)
    }


SHAPES = [(3, 5), (3, 4, 5), (3, 2, 4, 5), (1, 4, 5), (4, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_input_shapes(record, assert_same_gradients, make, shape):
    model, x = Net(_plain, make), torch.randn(shape)
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(model, x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_outputs_modified_in_place(record, assert_same_gradients, make, shape):
    """The first layer's output starts the graph; a later one's is a view of a matrix product for most shapes."""

    def in_place(net, x):
        return net.second(net.first(x).relu_()).relu_()

    model, x = Net(in_place, make), torch.randn(shape)
    apart = Net(lambda net, x: torch.relu(net.second(torch.relu(net.first(x)))), make)
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(apart, x))


def test_residual_added_in_place(record, assert_same_gradients):
    def in_place(net, x):
        hidden = torch.tanh(net.first(x))
        out = net.second(hidden)
        out += hidden
        return out

    def apart(net, x):
        hidden = torch.tanh(net.first(x))
        return net.second(hidden) + hidden

    x = torch.randn(3, 4, 5)
    found = record(Net(in_place), {"x": x}, _loss).gradients
    assert_same_gradients(found, _per_sample(Net(apart), x))


@pytest.mark.parametrize("factor", [1, 2])
def test_inputs_modified_in_place(record, factor):
    """Only a layer that was never trained allows this: autograd keeps the input of a trainable one."""

    def in_place(net, x):
        hidden = x.clone()
        hidden += nn.functional.pad(net.first(hidden), (0, -1))
        return torch.tanh(net.second(nn.functional.pad(hidden, (0, 1))))

    def apart(net, x):
        hidden = x + nn.functional.pad(net.first(x), (0, -1))
        return torch.tanh(net.second(nn.functional.pad(hidden, (0, 1))))

    x = torch.randn(3, 4, 5)
    expected = record(Net(apart), {"x": x}, _loss, factor=factor).gradients
    found = record(Net(in_place), {"x": x}, _loss, factor=factor).gradients
    torch.testing.assert_close(found["first"], expected["first"])


@pytest.mark.parametrize("with_moments", [False, True])
def test_inputs_modified_in_place_in_some_batches(draw, with_moments):
    """Inputs are copied until a batch has shown that they are left alone. One that changes its mind goes through once
    more, and no layer's moments have it twice."""

    def forward(net, x):
        hidden = x.clone()
        shifted = net.first(hidden) + 0.5
        result = torch.tanh(net.second(shifted))
        if net.editing:
            hidden += 1
            shifted += 1
        return result

    model, x = Net(forward), torch.randn(3, 4, 5)
    modules = tracked_modules(model)
    for orders in ((True, True, False), (False, False, True), (False, True, True, False)):
        found, sums = [], []
        for order in (orders, [False] * len(orders)):
            moments = {t.name: SecondMoments.zeros(*t.matrix_shape) for t in modules}
            with GradientRecorder(
                model, modules, draw(modules, 1), LossObjective(Custom(_loss)), moments if with_moments else None
            ) as recorder:
                for model.editing in order:
                    found.append(recorder.record({"x": x}).gradients)
            sums.append({name: (one.inputs, one.outputs, one.tokens) for name, one in moments.items()})
        for gradients in found:
            for name in ("first", "second"):
                torch.testing.assert_close(gradients[name], found[0][name])
        for name in ("first", "second"):
            torch.testing.assert_close(sums[0][name], sums[1][name])
            assert sums[0][name][2] == (12 * len(orders) if with_moments else 0)


def test_inputs_of_inference_mode(record, assert_same_gradients):
    """They keep no count of their changes, so they are copied."""

    def inferred(net, x):
        with torch.inference_mode():
            hidden = torch.sin(x)
        return torch.tanh(net.second(torch.tanh(net.first(hidden))))

    x = torch.randn(3, 4, 5)
    found = record(Net(inferred), {"x": x}, _loss).gradients
    assert_same_gradients(found, _per_sample(Net(_plain), torch.sin(x)))


def test_inputs_by_keyword(record, assert_same_gradients):
    model = Net(lambda net, x: torch.tanh(net.second(input=torch.tanh(net.first(input=x)))))
    x = torch.randn(3, 4, 5)
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(model, x))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_called_twice_adds_up(record, assert_same_gradients, make):
    def twice(net, x):
        return torch.tanh(net.second(torch.tanh(net.second(torch.tanh(net.first(x))))))

    model, x = Net(twice, make), torch.randn(3, 4, 5)
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(model, x))


def test_a_layer_under_two_names_adds_up(record, assert_same_gradients):
    model = Net(lambda net, x: torch.tanh(net.again(torch.tanh(net.second(torch.tanh(net.first(x)))))))
    model.again = model.second
    x = torch.randn(3, 4, 5)
    assert [t.name for t in tracked_modules(model)] == ["first", "second", "last"]
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(model, x))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_tokens_flattened_before_the_layer(record, assert_same_gradients, make):
    def flat(net, x):
        tokens = torch.tanh(net.second(torch.tanh(net.first(x.flatten(0, 1)))))
        return tokens.view(*x.shape[:2], -1)

    def loss(model, batch):
        return _loss(model, {"x": batch["input_ids"][..., None] * torch.linspace(-1, 1, 5)})

    model, ids = Net(flat, make), torch.randn(3, 4)
    x = ids[..., None] * torch.linspace(-1, 1, 5)
    assert_same_gradients(record(model, {"input_ids": ids}, loss).gradients, _per_sample(model, x))


@pytest.mark.parametrize("whole", [False, True])
def test_checkpoint_without_reentry_counts_once(record, assert_same_gradients, whole):
    def checkpointed(net, x):
        if whole:
            return checkpoint(lambda x: _plain(net, x), x, use_reentrant=False)
        hidden = torch.tanh(net.first(x))
        return checkpoint(lambda h: torch.tanh(net.second(h)), hidden, use_reentrant=False)

    model, x = Net(checkpointed), torch.randn(3, 4, 5)
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(Net(_plain), x))


@pytest.mark.parametrize("calls", [1, 2])
def test_reentrant_checkpoint_counts_once(record, assert_same_gradients, calls):
    """Its input has a graph, since a tracked layer stands before it."""

    def checkpointed(net, x, run=lambda f, h: checkpoint(f, h, use_reentrant=True)):
        hidden = torch.tanh(net.first(x))
        for _ in range(calls):
            hidden = run(lambda h: torch.tanh(net.second(h)), hidden)
        return hidden

    model, x = Net(checkpointed), torch.randn(3, 4, 5)
    plain = Net(lambda net, x: checkpointed(net, x, run=lambda f, h: f(h)))
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(plain, x))


def test_reentrant_checkpoint_of_an_input_that_requires_grad(record, assert_same_gradients):
    def checkpointed(net, x):
        return checkpoint(lambda x: _plain(net, x), x.detach().requires_grad_(), use_reentrant=True)

    model, x = Net(checkpointed), torch.randn(3, 4, 5)
    assert_same_gradients(record(model, {"x": x}, _loss).gradients, _per_sample(Net(_plain), x))


def test_a_layer_that_takes_no_part_counts_as_zero(record):
    model, x = Net(lambda net, x: torch.tanh(net.first(x))), torch.randn(3, 4, 5)
    gradients = record(model, {"x": x}, _loss, factor=2).gradients
    assert gradients["second"].shape == (3, 3, 3) and not gradients["second"].any()
    assert gradients["first"].any()


def test_some_layers_only(record, assert_same_gradients):
    """With the first layer left out, the graph starts at a later one."""
    model, x = Net(_plain), torch.randn(3, 4, 5)
    modules = tracked_modules(model, ["second", "last"])
    expected = {name: g for name, g in _per_sample(model, x).items() if name != "first"}
    assert_same_gradients(record(model, {"x": x}, _loss, modules=modules).gradients, expected)


@pytest.mark.parametrize("factor", [1, 2])
def test_autocast(record, factor):
    model, x = Net(_plain), torch.randn(3, 4, 5)

    def mixed(model, batch):  # the forward pass alone, as transformers' Trainer does
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return _loss(model, batch)

    found = record(model, {"x": x}, mixed, factor=factor).gradients
    for name, expected in record(model, {"x": x}, _loss, factor=factor).gradients.items():
        assert 0 < (found[name] - expected).norm() < 0.05 * expected.norm(), name


def test_float64(record):
    model, x = Net(_plain).double(), torch.randn(3, 4, 5, dtype=torch.float64)
    found = record(model, {"x": x}, _loss).gradients
    for name, expected in _per_sample(model, x).items():
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_attention_of_torchs_own_is_not_passed_over(record):
    """Its fast path, which frozen weights turn on, never calls the layers inside and takes no padding here."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        def forward(self, x, padding):
            return self.inner(x, src_key_padding_mask=padding).masked_fill(padding.unsqueeze(-1), 0).flatten(1).sum(1)

    torch.manual_seed(0)
    model, x = Encoder().eval(), torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    before = torch.backends.mha.get_fastpath_enabled()
    gradients = record(model, {"x": x, "padding": padding}, lambda m, b: m(b["x"], b["padding"])).gradients
    assert torch.backends.mha.get_fastpath_enabled() == before
    layer = model.inner.layers[1].linear1
    (expected,) = torch.autograd.grad(model(x, padding)[1], [layer.weight])
    torch.testing.assert_close(gradients["inner.layers.1.linear1"][1], expected.T, rtol=1e-4, atol=1e-5)
