"""What cannot be recorded is an error that says what was found and the way out."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorif_hf.errors import NonFiniteGradientError, ObjectiveError, UnsupportedModuleError
from lorif_hf.layers.selection import tracked_modules


class Net(nn.Module):
    def __init__(self, middle=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.middle = middle or (lambda net, x: net.second(net.first(x)))

    def forward(self, x):
        return self.last(self.middle(self, x))


def _loss(model, batch):
    return (model(batch["x"]) ** 2).flatten(1).sum(1)


def _batch(size=3):
    return {"x": torch.randn(size, 4, 5)}


def _without_grad(net, x):
    with torch.no_grad():
        return net.second(net.first(x))


def test_layers_under_no_grad(record):
    with pytest.raises(UnsupportedModuleError, match=r"module\(s\) '\w+', '\w+': .*torch\.no_grad") as caught:
        record(Net(_without_grad), _batch(), _loss)
    message = str(caught.value)
    assert "'first'" in message and "'second'" in message and "'last'" not in message


def test_lost_layers_are_named_in_the_models_order(build, token_batch, record):
    model = build("llama")
    forward = model.model.forward

    def without_grad(*args, **kwargs):
        with torch.no_grad():
            return forward(*args, **kwargs)

    model.model.forward = without_grad
    head = "lm_head"  # the only layer with a graph, so that the backward pass is reached
    modules = tracked_modules(model, rf".*_proj|{head}")
    with pytest.raises(UnsupportedModuleError) as caught:
        record(model, token_batch([4, 3]), modules=modules)
    first = [f"'model.layers.0.self_attn.{side}_proj'" for side in "qkv"]
    assert f"module(s) {', '.join(first)}, ...:" in str(caught.value)


def test_reentrant_checkpoint_without_a_graph(record):
    model = Net(lambda net, x: checkpoint(lambda x: net.second(net.first(x)), x, use_reentrant=True))
    with pytest.warns(UserWarning, match="requires_grad"), pytest.raises(UnsupportedModuleError) as caught:
        record(model, _batch(), _loss)
    message = str(caught.value)
    assert "'first'" in message and "'second'" in message and "use_reentrant=True: use False" in message


@pytest.mark.parametrize("detach", [lambda losses: losses.detach(), lambda losses: torch.zeros(3)])
def test_losses_without_a_graph(record, detach):
    with pytest.raises(UnsupportedModuleError, match=r"'first', 'second', 'last'.*were not called, or ran without"):
        record(Net(), _batch(), lambda model, batch: detach(_loss(model, batch)))


def test_many_names_are_cut(build, token_batch, record):
    def objective(model, batch):
        with torch.no_grad():
            return model(batch["input_ids"]).logits.sum((1, 2))

    with pytest.raises(UnsupportedModuleError, match=r"'model\.layers\.0\.self_attn\.v_proj', \.\.\.:"):
        record(build("llama"), token_batch([4, 3]), objective)


def test_a_layer_that_mixes_the_examples(record):
    model = Net(lambda net, x: net.second(net.first(x).mean(0, keepdim=True)).expand(len(x), -1, -1))
    with pytest.raises(
        UnsupportedModuleError, match=r"'second' saw 1 rows in a batch of 3.*one row at a time.*exclude"
    ):
        record(model, _batch(), _loss)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_input_names_module_and_row(record, value):
    batch = _batch(5)
    batch["x"][3, 1, 2] = value
    with pytest.raises(NonFiniteGradientError, match=r"'first' is NaN or infinite for row\(s\) 17\. ") as caught:
        record(Net(), batch, _loss, rows=[11, 13, 15, 17, 19])
    assert caught.value.rows == [17] and caught.value.module == "first"
    assert "bfloat16" in str(caught.value)


def test_rows_are_counted_from_zero_by_default(record):
    batch = _batch(3)
    batch["x"][1:, 0, 0] = math.nan
    with pytest.raises(NonFiniteGradientError) as caught:
        record(Net(), batch, _loss)
    assert caught.value.rows == [1, 2] and "row(s) 1, 2." in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_bad_weight_names_the_first_module_it_reaches(build, token_batch, record, value, factor):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(NonFiniteGradientError) as caught:
        record(model, token_batch([4, 3]), rows=[40, 41], factor=factor)
    assert caught.value.rows == [40, 41] and caught.value.module.startswith("model.layers.")


def test_many_rows_are_cut(record):
    batch = {"x": torch.full((12, 4, 5), math.nan)}
    with pytest.raises(NonFiniteGradientError, match=r"8, 9, \.\.\.\. Check") as caught:
        record(Net(), batch, _loss)
    assert caught.value.rows == list(range(12))


def test_a_bad_loss_with_sound_gradients(record):
    def objective(model, batch):
        return _loss(model, batch) + torch.tensor([0.0, math.inf, 0.0])

    with pytest.raises(NonFiniteGradientError, match=r"'\(the loss\)'.*row\(s\) 8"):
        record(Net(), _batch(), objective, rows=[7, 8, 9])


def test_large_but_finite_gradients_pass(record):
    """Their sum overflows float32, none of them does."""
    model = Net(lambda net, x: net.second(net.first(x)).abs())
    found = record(model, _batch(), lambda model, batch: model(batch["x"]).sum((1, 2)) * 6e37).gradients
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert not bool(found["last"].flatten(1).sum(1).isfinite().any())


@pytest.mark.parametrize(
    ("reduce", "found"),
    [
        (torch.sum, r"got \(\)"),
        (torch.mean, r"got \(\)"),
        (lambda losses: losses[:, None], r"got \(3, 1\)"),
        (lambda losses: losses[:2], r"got \(2,\)"),
        (lambda losses: losses.tolist(), "got list"),
        (lambda losses: None, "got NoneType"),
        (lambda losses: {"loss": losses}, "got dict"),
    ],
)
def test_an_objective_must_give_one_loss_per_example(record, reduce, found):
    with pytest.raises(
        ObjectiveError, match=rf"'custom' must return .* shape \(3,\), {found}\. Sum over an example's"
    ):
        record(Net(), _batch(), lambda model, batch: reduce(_loss(model, batch)))


def test_a_batch_without_tensors(record):
    with pytest.raises(ObjectiveError, match="holds no tensor: its entries are x, y"):
        record(Net(), {"x": [1, 2], "y": torch.tensor(3.0)}, _loss)
    with pytest.raises(ObjectiveError, match="entries are none"):
        record(Net(), {}, _loss)
