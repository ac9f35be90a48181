"""Per-example gradients of transformers' models against one ordinary backward pass per example."""

import pytest
import torch
from projections import rademacher
from torch.func import functional_call, grad

from lorif_hf.layers.selection import tracked_modules


LENGTHS = [7, 4, 5]
KINDS = ["gpt2", "llama", "bert-classifier", "gpt2-classifier", "llama-classifier"]
LORA = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True, "lora_alpha": 5}}


def _batch(token_batch, kind, **options):
    return token_batch(LENGTHS, labels=[2, 0, 1] if kind.endswith("classifier") else None, **options)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_example(build, token_batch, record, reference, assert_same_gradients, kind, side):
    model, batch = build(kind), _batch(token_batch, kind, side=side)
    recording = record(model, batch)
    assert {t.kind.name for t in tracked_modules(model)} == {"conv1d" if kind.startswith("gpt2") else "linear"}
    assert_same_gradients(recording.gradients, reference(model, batch))


def test_gradients_equal_those_of_torch_func(build, token_batch, record, assert_same_gradients):
    model, batch = build("llama").eval(), token_batch(LENGTHS)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, ids, mask, labels):
        inputs = {"input_ids": ids[None], "attention_mask": mask[None]}
        logits = functional_call(model, parameters, (), inputs).logits[0]
        chosen = logits[:-1].log_softmax(-1).gather(1, labels[1:, None].clamp(min=0))[:, 0]
        return -(chosen * (labels[1:] != -100)).sum()

    rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    samples = [grad(loss)(parameters, *row) for row in rows]
    expected = {
        t.name: torch.stack([sample[f"{t.name}.weight"].T for sample in samples]) for t in tracked_modules(model)
    }
    assert_same_gradients(record(model, batch).gradients, expected)


@pytest.mark.parametrize("method", LORA)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert-classifier"])
def test_lora_gradients(build, token_batch, record, reference, assert_same_gradients, kind, method):
    model = build(kind, lora=LORA[method])
    batch = _batch(token_batch, kind, side="left" if kind == "llama" else "right")
    recording = record(model, batch)
    sides = [name.split(".")[-2] for name in recording.gradients]
    assert set(sides) == {"lora_A", "lora_B"} and sides.count("lora_A") == sides.count("lora_B")
    assert_same_gradients(recording.gradients, reference(model, batch))


def test_lora_in_float32_over_a_bfloat16_base(build, token_batch, record, reference, assert_same_gradients):
    model, batch = build("llama", lora={}), token_batch(LENGTHS)
    expected = reference(model, batch)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    assert_same_gradients(record(model, batch).gradients, expected, tolerance=0.1)


@pytest.mark.parametrize("inputs_require_grad", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("lora", [None, {}])
def test_gradient_checkpointing(
    build, token_batch, record, reference, assert_same_gradients, lora, use_reentrant, inputs_require_grad
):
    model, batch = build("llama", lora=lora), token_batch(LENGTHS)
    expected = reference(model, batch)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if inputs_require_grad:
        model.enable_input_require_grads()
    assert_same_gradients(record(model, batch).gradients, expected)


def test_dropout_is_off(build, token_batch, record, reference, assert_same_gradients):
    options = {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
    model, batch = build("gpt2", **options).train(), token_batch(LENGTHS)
    assert_same_gradients(record(model, batch).gradients, reference(model, batch))


@pytest.mark.parametrize("factor", [2, 3, 1000])
@pytest.mark.parametrize(("kind", "lora"), [("gpt2", None), ("llama", None), ("llama", {"r": 4})])
def test_projected_gradients(build, token_batch, record, reference, assert_same_gradients, kind, lora, factor):
    model, batch = build(kind, lora=lora), token_batch(LENGTHS)
    expected = reference(model, batch)
    for t in tracked_modules(model):
        for side, size in (("in", t.shape.in_features), ("out", t.shape.out_features)):
            target = max(1, size // factor)
            if target != size:
                matrix = rademacher(size, target, seed=0, name=f"{t.name}/{side}").double()
                equation = "nio,id->ndo" if side == "in" else "nio,od->nid"
                expected[t.name] = torch.einsum(equation, expected[t.name].double(), matrix)
    recording = record(model, batch, factor=factor)
    # A projection may cancel most of a gradient, which leaves fewer digits.
    assert_same_gradients(recording.gradients, expected, tolerance=1e-4)


def test_losses_and_targets(build, token_batch, record):
    model, batch = build("llama"), token_batch(LENGTHS)
    batch["labels"][0, :3] = -100
    recording = record(model, batch)
    expected = []
    with torch.no_grad():
        for i in range(3):
            logits = model(**{key: value[i : i + 1] for key, value in batch.items()}).logits[0].double()
            labels = batch["labels"][i]
            expected.append(
                -sum(logits[t - 1].log_softmax(-1)[labels[t]] for t in range(1, 7) if labels[t] != -100).item()
            )
    assert recording.losses.dtype == torch.float64 and not recording.losses.requires_grad
    torch.testing.assert_close(recording.losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert recording.targets.tolist() == [4, 3, 4] and recording.targets.dtype == torch.int64


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert-classifier"])
def test_bfloat16_models_are_close_to_float32(build, token_batch, record, kind):
    model, batch = build(kind, initializer_range=0.1), _batch(token_batch, kind)
    expected = record(model, batch).gradients
    found = record(model.bfloat16(), batch).gradients
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all())
        distance = (gradient - expected[name]).norm() / expected[name].norm()
        assert distance < 0.05, f"{name}: {distance}"
