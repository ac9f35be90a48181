"""Margins and weights against a loop over single targets in float64."""

import math

import pytest
import torch

from lorif_hf.errors import ObjectiveError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.tasks import Custom, task_of
from lorif_hf.tasks.objectives import LikelihoodObjective, LossObjective, MarginObjective, RewardObjective


def margin(scores, right):
    """log(p / (1 - p)) and 1 - p of one target, from the probabilities of a plain softmax."""
    scores = [math.exp(value) for value in scores]
    p = scores[right] / sum(scores)
    return math.log(p / (1 - p)), 1 - p


def expected_of(logits, labels):
    """Per row minus the sum of margins and the mean of 1 - p over its targets (zero where it has none)."""
    losses, weights = [], []
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        found = [margin(scores, right) for scores, right in zip(row, targets, strict=True) if right != -100]
        losses.append(-sum(value for value, _ in found))
        weights.append(sum(doubt for _, doubt in found) / max(1, len(found)))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_margins_of_a_language_model_are_summed_over_tokens(build, token_batch, kind, side):
    model, batch = build(kind).eval(), token_batch([6, 3, 5], side=side)
    batch["labels"][0, 2] = -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs).logits.detach().double()[:, :-1]
    losses, weights = expected_of(logits, batch["labels"][:, 1:])
    objective = MarginObjective(task_of(model))
    values = objective(model, batch)
    assert values.losses.requires_grad and objective.task.name == "causal-lm"
    torch.testing.assert_close(values.losses.double(), losses, rtol=1e-4, atol=1e-4)
    assert values.weights.dtype == torch.float32 and not values.weights.requires_grad
    torch.testing.assert_close(values.weights.double(), weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("kind", ["bert-classifier", "llama-classifier", "gpt2-classifier"])
def test_margins_of_a_classifier(build, token_batch, kind, column):
    labels = [[2], [0], [1]] if column else [2, 0, 1]
    model, batch = build(kind).eval(), token_batch([5, 3, 4], labels=labels)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs).logits.detach().double().unsqueeze(1)
    losses, weights = expected_of(logits, torch.tensor([[2], [0], [1]]))
    objective = MarginObjective(task_of(model))
    values = objective(model, batch)
    torch.testing.assert_close(values.losses.double(), losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values.weights.double(), weights, rtol=1e-4, atol=1e-6)


def test_a_row_without_a_target_has_no_margin_and_no_weight(build, token_batch):
    model, batch = build("llama").eval(), token_batch([4, 4])
    batch["labels"][1] = -100
    objective = MarginObjective(task_of(model))
    values = objective(model, batch)
    assert values.losses[0] != 0 and values.losses[1] == 0 and values.weights.tolist()[1] == 0
    model, batch = build("bert-classifier").eval(), token_batch([4, 4], labels=[-100, 1])
    objective = MarginObjective(task_of(model))
    values = objective(model, batch)
    assert values.losses[0] == 0 and values.weights[0] == 0 < values.weights[1]


def test_the_prediction_stands_in_for_absent_labels(build, token_batch):
    model, batch = build("bert-classifier").eval(), token_batch([5, 3, 4], labels=[0, 0, 0])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    predicted = model(**inputs).logits.argmax(-1)
    objective = MarginObjective(task_of(model))
    expected = objective(model, {**inputs, "labels": predicted})
    assert torch.equal(objective(model, inputs).losses, expected.losses)


@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_a_sure_model_has_finite_margins_and_gradients(build, token_batch, record, scale):
    """log(p / (1 - p)) by its own words would be infinite where p rounds to 1."""
    model, batch = build("bert-classifier").eval(), token_batch([5, 3], labels=[0, 1])
    with torch.no_grad():
        model.classifier.weight *= scale
    recording = record(model, batch, MarginObjective(task_of(model)))
    assert bool(recording.losses.isfinite().all()) and float(recording.losses.abs().max()) > 17
    assert all(bool(gradient.isfinite().all()) for gradient in recording.gradients.values())
    assert bool(((recording.weights >= 0) & (recording.weights <= 1)).all())


def test_the_loss_is_the_softplus_of_minus_the_margin(build, token_batch):
    """-log p = log(1 + exp(-f)): its derivative by f is p - 1, which is where the weight comes from."""
    model, batch = build("bert-classifier").eval(), token_batch([5, 3, 4], labels=[2, 0, 1])
    margins = -MarginObjective(task_of(model))(model, batch).losses
    losses = LossObjective(task_of(model))(model, batch).losses
    torch.testing.assert_close(losses, torch.nn.functional.softplus(-margins), rtol=1e-5, atol=1e-6)


def test_a_recording_carries_the_weights_of_its_own_batch(build, token_batch, record):
    model, batch = build("llama"), token_batch([6, 4])
    recording = record(model, batch, MarginObjective(task_of(model)))
    assert list(recording.gradients) == [tracked.name for tracked in tracked_modules(model)]
    alone = [
        record(
            model,
            {key: value[i : i + 1] for key, value in batch.items()},
            MarginObjective(task_of(model)),
        ).weights
        for i in range(2)
    ]
    torch.testing.assert_close(recording.weights, torch.cat(alone), rtol=1e-5, atol=0)
    assert record(model, batch).weights is None


MARGINLESS = {
    "regression": ({"num_labels": 1}, [0.5, 1.0]),
    "regression of two": ({"num_labels": 2, "problem_type": "regression"}, [[0.5, 1.0], [1.0, 2.0]]),
    "multi": ({"num_labels": 3, "problem_type": "multi_label_classification"}, [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    "multi by its labels": ({"num_labels": 3}, [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
}


@pytest.mark.parametrize("options, labels", MARGINLESS.values(), ids=MARGINLESS)
def test_numbers_have_no_margin(build, token_batch, options, labels):
    model, batch = build("bert-classifier", **options).eval(), token_batch([4, 3], labels=labels)
    with pytest.raises(ObjectiveError, match=r"'sequence-classification' has no margin: .* Use output='loss'\."):
        MarginObjective(task_of(model))(model, batch)


def test_a_users_own_objective_has_no_margin(build, token_batch):
    objective = MarginObjective(Custom(lambda model, batch: torch.zeros(1)))
    with pytest.raises(ObjectiveError, match=r"Objective 'custom' has no margin: output='margin' is for causal"):
        objective(build("llama"), token_batch([3]))


@pytest.mark.parametrize("kind", ["llama", "bert-classifier"])
def test_a_likelihood_is_that_of_the_labels(build, token_batch, kind):
    model = build(kind).eval()
    batch = token_batch([5, 3], labels=None if kind == "llama" else [1, 0])
    task = task_of(model)
    with torch.no_grad():
        found = LikelihoodObjective(task)(model, batch)
        torch.testing.assert_close(found.losses, task.losses(model, batch))
    assert found.weights is None


def test_a_reward_is_the_single_output(build, token_batch):
    model = build("bert-classifier", num_labels=1).eval()
    batch = token_batch([5, 3], labels=[0.0, 0.0])
    del batch["labels"]
    with torch.no_grad():
        found = RewardObjective(task_of(model))(model, batch).losses
        torch.testing.assert_close(found, -model(**batch).logits[:, 0])
