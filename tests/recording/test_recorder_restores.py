"""The model leaves the recorder as it came: flags, modes, hooks, gradients and config, whatever happened inside."""

import pytest
import torch

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.layers import Linear
from lorif_hf.layers.modules import base_model
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import CausalLM, task_of
from lorif_hf.tasks.objectives import LossObjective


class Interrupted(Exception):
    pass


def _snapshot(model):
    config = base_model(model).config
    return {
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "hooks": {
            name: [dict(h) for h in (m._forward_hooks, m._forward_pre_hooks, m._forward_hooks_with_kwargs)]
            for name, m in model.named_modules()
        },
        "use_cache": getattr(config, "use_cache", "absent"),
        "config": config.to_dict(),
        "weights": {name: (p.data_ptr(), p._version) for name, p in model.named_parameters()},
    }


def _prepare(model):
    """Mixed flags, mixed modes, and gradients from before on half of the parameters."""
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    return {name: p.grad for name, p in model.named_parameters()}


def _fails_with(error):
    def objective(model, batch):
        losses = model(batch["input_ids"]).logits.sum((1, 2))
        if error is not None:
            raise error
        return losses

    return objective


@pytest.mark.parametrize(
    "error", [None, Interrupted("inside"), KeyboardInterrupt()], ids=["success", "error", "ctrl-c"]
)
@pytest.mark.parametrize(
    ("kind", "lora", "use_cache"), [("gpt2", None, True), ("llama", None, False), ("llama", {}, True)]
)
def test_all_is_restored(build, token_batch, record, kind, lora, use_cache, error):
    model, batch = build(kind, lora=lora), token_batch([4, 3])
    base_model(model).config.use_cache = use_cache
    gradients = _prepare(model)
    values = {name: None if g is None else g.clone() for name, g in gradients.items()}
    before = _snapshot(model)
    if error is None:
        assert record(model, batch, _fails_with(None)).gradients
    else:
        with pytest.raises(type(error)):
            record(model, batch, _fails_with(error))
    assert _snapshot(model) == before
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name], name
        assert parameter.grad is None or torch.equal(parameter.grad, values[name]), name
    for tracked in tracked_modules(model):
        assert not tracked.module._forward_hooks


def test_no_weight_gradient_is_computed(build, token_batch, record):
    """Nothing at all arrives at a parameter, not even for a moment: a hook would see it."""
    model, seen = build("llama"), []
    handles = [p.register_hook(seen.append) for p in model.parameters()]
    assert record(model, token_batch([4, 3])).gradients
    assert not seen and all(p.grad is None for p in model.parameters())
    for handle in handles:
        handle.remove()


def test_inside_the_pass(build, token_batch, draw):
    """All frozen, in eval mode, without a cache, one hook per tracked module."""
    model = build("llama").train()
    base_model(model).config.use_cache = True
    modules = tracked_modules(model)
    with GradientRecorder(model, modules, draw(modules, 1), LossObjective(task_of(model))):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        assert model.config.use_cache is False
        assert all(len(tracked.module._forward_hooks) == 1 for tracked in modules)
    assert all(p.requires_grad for p in model.parameters()) and model.training and model.config.use_cache is True


def test_hooks_of_others_stay(build, token_batch, record):
    model, calls = build("llama"), []
    layer = model.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.register_forward_pre_hook(lambda *_: calls.append(2))
    before = _snapshot(model)
    record(model, token_batch([4, 3]))
    assert sorted(calls) == [1, 2] and _snapshot(model) == before


def test_an_error_on_the_way_in_restores_too(build, draw):
    model = build("llama").train()
    modules = tracked_modules(model)
    before = _snapshot(model)

    class NoHooks:
        name, kind, followed, shared, weight = "broken", Linear(), False, (), torch.ones(1)

        class module:
            @staticmethod
            def register_forward_hook(*_, **__):
                raise Interrupted

    projections = {**draw(modules, 1), "broken": TwoSidedProjection(None, None)}
    recorder = GradientRecorder(model, [*modules, NoHooks()], projections, LossObjective(task_of(model)))
    with pytest.raises(Interrupted):
        recorder.__enter__()
    assert _snapshot(model) == before


def test_a_failed_batch_leaves_nothing_to_the_next(build, token_batch, draw, record, assert_same_gradients):
    model, batch = build("llama"), token_batch([4, 3])
    modules, failing = tracked_modules(model), [True]

    def sometimes(model, batch):
        losses = CausalLM().losses(model, batch)
        if failing.pop():
            (losses.sum() * 3).backward(retain_graph=True)
            raise Interrupted
        failing.append(False)
        return losses

    expected = record(model, batch).gradients
    with GradientRecorder(model, modules, draw(modules, 1), LossObjective(task_of(model, sometimes))) as recorder:
        with pytest.raises(Interrupted):
            recorder.record(batch)
        failing.append(False)
        assert_same_gradients(recorder.record(batch).gradients, expected)


@pytest.mark.parametrize("grad_enabled", [False, True])
def test_the_callers_grad_mode_does_not_matter(build, token_batch, record, assert_same_gradients, grad_enabled):
    model, batch = build("llama"), token_batch([4, 3])
    expected = record(model, batch).gradients
    with torch.set_grad_enabled(grad_enabled):
        found = record(model, batch)
        assert torch.is_grad_enabled() is grad_enabled
    assert_same_gradients(found.gradients, expected)
    assert not any(g.requires_grad for g in found.gradients.values())


def test_the_batch_is_not_changed(build, token_batch, record):
    model, batch = build("llama"), token_batch([4, 3])
    before = {key: value.clone() for key, value in batch.items()}
    record(model, batch)
    assert list(batch) == list(before)
    assert all(torch.equal(batch[key], before[key]) for key in before)


def test_training_gives_the_same_after_a_recording(build, token_batch, record):
    batch = token_batch([4, 3])
    losses = []
    for recorded in (False, True):
        model = build("llama").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            if recorded:
                record(model, batch)
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_what_a_forward_pass_counts_in_buffers_is_restored(build, token_batch, draw):
    model = build("llama")
    model.register_buffer("seen", torch.zeros(()))
    model.model.register_forward_hook(lambda *_: model.seen.add_(1) and None)
    modules = tracked_modules(model)
    with GradientRecorder(model, modules, draw(modules, 1), LossObjective(task_of(model))) as recorder:
        recorder.record(token_batch([4, 3]))
        assert model.seen == 1
    assert model.seen == 0
