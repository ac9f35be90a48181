"""Second moments that a recorder adds up, against plain sums over the tokens of each layer."""

import pytest
import torch
from projections import rademacher

from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


def recorded(model, batches, draw, factor):
    modules = tracked_modules(model)
    moments = {}
    for t in modules:
        d1, d2 = max(1, t.shape.in_features // factor), max(1, t.shape.out_features // factor)
        moments[t.name] = SecondMoments.zeros(d1, d2)
    recorder = GradientRecorder(model, modules, draw(modules, factor), LossObjective(task_of(model)), moments)
    with recorder:
        recordings = [recorder.record(batch) for batch in batches]
    return moments, recordings


def tokens_of(model, batch):
    """Per layer the inputs and output gradients (B T, features) by a plain backward pass, in float64."""
    model = model.double()
    seen, handles = {}, []
    for t in tracked_modules(model):
        handles.append(
            t.module.register_forward_hook(lambda _, x, y, name=t.name: seen.update({name: (x[0].detach(), y)}))
        )
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    value = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    names = list(seen)
    gradients = torch.autograd.grad(value, [seen[name][1] for name in names])
    for handle in handles:
        handle.remove()
    model.float()
    return {name: (seen[name][0].flatten(0, -2), g.flatten(0, -2)) for name, g in zip(names, gradients, strict=True)}


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_moments_are_sums_over_the_tokens_that_have_a_gradient(build, token_batch, draw, kind, factor):
    model, batches = build(kind).eval(), [token_batch([7, 3, 5], seed=1), token_batch([4, 6], seed=2)]
    moments, _ = recorded(model, batches, draw, factor)
    parts = [tokens_of(model, batch) for batch in batches]
    for t in tracked_modules(model):
        # Padding and last tokens predict nothing. The query of a first token attends to that token alone, whatever it
        # is: its gradient is zero but for rounding, which must not decide whether it counts.
        lengths = [7, 3, 5, 4, 6]
        targets = sum(length - 1 for length in lengths)
        if t.name.endswith("q_proj"):
            targets -= len(lengths)
        x, dy = (torch.cat([part[t.name][side] for part in parts]) for side in (0, 1))
        kept = dy.norm(dim=1) > 1e-9 * dy.norm(dim=1).max()
        for side, size in (("in", t.shape.in_features), ("out", t.shape.out_features)):
            if factor != 1:
                matrix = rademacher(size, max(1, size // factor), seed=0, name=f"{t.name}/{side}").double()
                x, dy = (x @ matrix, dy) if side == "in" else (x, dy @ matrix)
        found = moments[t.name]
        assert found.tokens == int(kept.sum()) == targets, t.name
        for moment, tokens in ((found.inputs, x[kept]), (found.outputs, dy[kept])):
            expected = tokens.T @ tokens
            assert float((moment - expected).norm() / expected.norm()) < 1e-5, t.name


def test_a_recorder_gives_the_same_gradients_with_and_without_moments(build, token_batch, draw, record):
    model, batch = build("llama"), token_batch([5, 3])
    _, (recording,) = recorded(model, [batch], draw, 2)
    expected = record(model, batch, factor=2).gradients
    assert all(torch.equal(gradient, expected[name]) for name, gradient in recording.gradients.items())


def test_padding_adds_nothing(build, token_batch, draw):
    model, batch = build("llama"), token_batch([5, 3])
    wider = {
        key: torch.nn.functional.pad(value, (0, 4), value=-100 if key == "labels" else 0)
        for key, value in batch.items()
    }
    (one, _), (other, _) = (recorded(model, [some], draw, 2) for some in (batch, wider))
    for name, moments in one.items():
        assert moments.tokens == other[name].tokens == (4 if name.endswith("q_proj") else 6)
        torch.testing.assert_close(moments.inputs, other[name].inputs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.outputs, other[name].outputs, rtol=1e-4, atol=1e-6)
