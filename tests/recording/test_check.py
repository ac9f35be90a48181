"""The check of the first batch: equal where recording is right, and clear about what is not."""

import math

import pytest
import torch
from recordings import build, draw, token_batch

from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.check import Comparison, Probe, RecordingCheck
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective, MarginObjective
from lorif_hf.tasks.own_loss import model_loss


LENGTHS = [6, 3, 5]


def singles(batch):
    """Each row alone, without its padding."""
    rows = []
    for i in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][i].sum())
        rows.append({k: v[i : i + 1, :length] if v.dim() == 2 else v[i : i + 1] for k, v in batch.items()})
    return rows


def check_of(model, factor=1):
    modules = tracked_modules(model)
    return RecordingCheck(model, modules, draw(modules, factor), range(3))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert-classifier", "gpt2-classifier"])
@pytest.mark.parametrize("factor", [1, 2])
def test_right_recordings_are_equal_to_autograd(kind, factor):
    model = build(kind)
    batch = token_batch(LENGTHS, labels=[0, 2, 1] if "classifier" in kind else None)
    check, objective = check_of(model, factor), LossObjective(task_of(model))
    comparison = check.compare(
        check.recorded(objective, [batch]), check.truth(LossObjective(model_loss(model)), singles(batch))
    )
    assert comparison.equal and comparison.loss < 1e-6


def test_a_probe_is_the_product_of_each_gradient_with_the_vectors():
    model, batch = build("gpt2"), token_batch(LENGTHS)
    check = check_of(model, factor=2)
    probe = check.truth(LossObjective(task_of(model)), singles(batch))
    layer = model.transformer.h[1].mlp.c_fc
    (tracked,) = [t for t in check.modules if t.module is layer]
    signs = check.projections[tracked.name]
    for i, row in enumerate(singles(batch)):
        loss = model.eval()(**row).loss * (LENGTHS[i] - 1)
        (gradient,) = torch.autograd.grad(loss, [layer.weight])
        root_in, root_out = (side.shape[1] ** -0.5 for side in (signs.in_signs, signs.out_signs))
        whole = signs.in_signs.T.float() @ gradient @ signs.out_signs.float() * root_in * root_out
        expected = whole @ check._vectors[tracked.name]
        torch.testing.assert_close(probe.gradients[tracked.name][i], expected, rtol=1e-4, atol=1e-5)
        assert math.isclose(float(probe.losses[i]), loss.item(), rel_tol=1e-5)


def test_a_loss_that_differs_is_told_with_both_values():
    model, batch = build("gpt2"), token_batch(LENGTHS)
    check = check_of(model)
    twice = LossObjective(task_of(model, lambda model, batch: 2 * task_of(model).losses(model, batch)))
    truth = check.truth(LossObjective(task_of(model)), singles(batch))
    comparison = check.compare(check.recorded(twice, [batch]), truth)
    assert comparison.wrong_loss and not comparison.equal
    row = comparison.row
    assert str(comparison) == (
        f"the loss of row {row} is {2 * truth.losses[row]:.6g} as recorded and {truth.losses[row]:.6g} as trained"
    )
    assert not check.compare(check.recorded(twice, [batch]), truth, with_loss=False).wrong_loss


def test_layers_that_differ_are_named_the_worst_first():
    model, batch = build("llama"), token_batch(LENGTHS)
    check = check_of(model)
    truth = check.truth(LossObjective(task_of(model)), singles(batch))
    recorded = check.recorded(LossObjective(task_of(model)), [batch])
    name, other = check.modules[3].name, check.modules[5].name
    recorded.gradients[name][1] *= 3
    recorded.gradients[other][0] *= 1.5
    comparison = check.compare(recorded, truth)
    assert set(comparison.modules) == {name, other} and not comparison.wrong_loss
    assert str(comparison).startswith(f"the gradients of '{name}' (by ")
    assert comparison.modules[name] > comparison.modules[other]


def test_a_layer_much_smaller_than_the_others_is_still_compared_and_pure_noise_is_not():
    big, small = torch.ones(1, 2, 4), torch.full((1, 2, 4), 1e-3)
    truth = Probe(torch.ones(1), {"big": big, "small": small, "noise": small * 1e-9}, {}, 0.0)
    check = RecordingCheck(build("gpt2"), [], {}, [0])
    recorded = Probe(torch.ones(1), {"big": big, "small": 0 * small, "noise": 0 * small}, {}, 0.0)
    assert list(check.compare(recorded, truth).modules) == ["small"]


def test_a_loss_that_is_not_finite_is_wrong():
    check = RecordingCheck(build("gpt2"), [], {}, [7])
    comparison = check.compare(Probe(torch.tensor([math.nan]), {}, {}, 0.0), Probe(torch.ones(1), {}, {}, 0.0))
    assert comparison.wrong_loss and "row 7" in str(comparison)


def test_rounding_of_bfloat16_is_no_difference():
    model, batch = build("llama").bfloat16(), token_batch(LENGTHS)
    check, objective = check_of(model), LossObjective(task_of(model))
    comparison = check.compare(
        check.recorded(objective, [batch]), check.truth(LossObjective(model_loss(model)), singles(batch))
    )
    assert comparison.equal


def test_margins_are_compared_by_their_gradients():
    model, batch = build("gpt2"), token_batch(LENGTHS)
    check, objective = check_of(model), MarginObjective(task_of(model))
    assert check.compare(check.recorded(objective, [batch]), check.truth(objective, singles(batch))).equal


def test_nothing_is_left_behind(gpt2):
    batch = token_batch([4, 2])
    batch["input_ids"] %= 50
    batch["labels"] = batch["labels"].clamp(max=49)
    check = RecordingCheck(gpt2, tracked_modules(gpt2), draw(tracked_modules(gpt2), 1), range(2))
    weight = gpt2.transformer.h[0].mlp.c_fc.weight
    weight.grad = torch.ones_like(weight)
    gpt2.train()
    flags = [parameter.requires_grad for parameter in gpt2.parameters()]
    check.recorded(LossObjective(task_of(gpt2)), [batch])
    check.truth(LossObjective(task_of(gpt2)), singles(batch))
    assert gpt2.training and flags == [parameter.requires_grad for parameter in gpt2.parameters()]
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert all(p.grad is None for p in gpt2.parameters() if p is not weight)
    assert not any(module._forward_hooks for module in gpt2.modules())


def test_equal_needs_both():
    assert Comparison(0.0, (1.0, 1.0), 0, {}, False).equal
    assert not Comparison(0.0, (1.0, 1.0), 0, {"layer": 1.0}, False).equal
    assert not Comparison(1.0, (1.0, 2.0), 0, {}, True).equal


def test_an_optimizer_that_steps_in_the_backward_pass_does_not_step(gpt2):
    """PyTorch's tutorial fuses it into hooks on the accumulated gradients; so do layerwise optimizers."""
    before = {name: value.clone() for name, value in gpt2.state_dict().items()}
    for parameter in gpt2.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    ids = torch.tensor([[3, 4, 5]])
    modules = tracked_modules(gpt2)
    check = RecordingCheck(gpt2, modules, draw(modules, 1), [0])
    probe = check.truth(LossObjective(model_loss(gpt2)), [{"input_ids": ids, "labels": ids}])
    assert all(bool(rows.any()) for rows in probe.gradients.values())
    assert all(torch.equal(value, before[name]) for name, value in gpt2.state_dict().items())


def test_gradients_are_taken_a_few_layers_at_a_time_where_they_are_large(monkeypatch):
    model, batch = build("llama"), token_batch(LENGTHS)
    whole = check_of(model).truth(LossObjective(task_of(model)), singles(batch))
    monkeypatch.setattr("lorif_hf.recording.check._TOGETHER", 3000)
    check = check_of(model)
    assert 5 < len(list(check._groups())) < len(check.modules)
    parts = check.truth(LossObjective(task_of(model)), singles(batch))
    assert all(torch.equal(parts.gradients[name], rows) for name, rows in whole.gradients.items())
