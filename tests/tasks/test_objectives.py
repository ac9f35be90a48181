"""Per-example losses against a plain loop in float64 and against the models' own losses."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForTokenClassification, BertModel

from lorif_hf.errors import ObjectiveError
from lorif_hf.tasks import CausalLM, Custom, SequenceClassification, task_of
from lorif_hf.tasks.base import auto_class, batch_size, forward_inputs, losses_of


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_lm_by_a_loop(build, token_batch, kind, side):
    model, batch = build(kind).eval(), token_batch([6, 3, 5], side=side)
    batch["labels"][0, 2] = -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs).logits.detach().double()
    expected, counts = [], []
    for row in range(3):
        total, count = 0.0, 0
        for position in range(1, 6):
            label = int(batch["labels"][row, position])
            if label != -100:
                scores = [math.exp(value) for value in logits[row, position - 1].tolist()]
                total -= math.log(scores[label] / sum(scores))
                count += 1
        expected.append(total)
        counts.append(count)
    task = task_of(model)
    losses = losses_of(task, model, batch)
    assert losses.shape == (3,) and losses.requires_grad
    torch.testing.assert_close(losses.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert task.targets(batch).tolist() == counts


def test_causal_lm_is_the_models_own_loss_times_its_labels(build, token_batch):
    model, batch = build("llama").eval(), token_batch([6, 4])
    losses = losses_of(task_of(model), model, batch)
    for i in range(2):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        count = (row["labels"][:, 1:] != -100).sum()
        torch.testing.assert_close(losses[i], model(**row).loss * count, rtol=1e-5, atol=0)


def test_causal_lm_in_bfloat16_sums_in_float32(build, token_batch):
    model = build("llama").eval().bfloat16()
    assert losses_of(task_of(model), model, token_batch([6, 4])).dtype == torch.float32


_PROBLEMS = {
    "classes": ({"num_labels": 3}, [2, 0, 1]),
    "classes-named": ({"num_labels": 3, "problem_type": "single_label_classification"}, [2, 0, 1]),
    "classes-column": ({"num_labels": 3, "problem_type": "single_label_classification"}, [[2], [0], [1]]),
    "regression": ({"num_labels": 1}, [0.5, -2.0, 3.0]),
    "regression-column": ({"num_labels": 1}, [[0.5], [-2.0], [3.0]]),
    "regression-two": ({"num_labels": 2, "problem_type": "regression"}, [[0.5, 1.0], [-2.0, 0.0], [3.0, 1.0]]),
    "multi": ({"num_labels": 3}, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    "multi-named": (
        {"num_labels": 2, "problem_type": "multi_label_classification"},
        [[1.0, 0.0], [0.0, 0.0], [0.5, 1.0]],
    ),
}


@pytest.mark.parametrize("problem", _PROBLEMS)
@pytest.mark.parametrize("kind", ["bert-classifier", "llama-classifier", "gpt2-classifier"])
def test_classifiers_by_the_models_own_loss(build, token_batch, kind, problem):
    options, labels = _PROBLEMS[problem]
    model, batch = build(kind, **options).eval(), token_batch([5, 3, 4], labels=labels)
    task = task_of(model)
    losses = losses_of(task, model, batch)
    assert task.targets(batch).tolist() == [1, 1, 1]
    for i in range(3):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        model.config.problem_type = options.get("problem_type")  # the model's own loss sets it
        torch.testing.assert_close(losses[i], model(**row).loss, rtol=1e-5, atol=1e-6)


def test_integer_targets_of_a_regression(build, token_batch):
    model = build("bert-classifier", num_labels=1).eval()
    losses = losses_of(task_of(model), model, token_batch([4, 4], labels=[1, 2]))
    expected = losses_of(task_of(model), model, token_batch([4, 4], labels=[1.0, 2.0]))
    assert torch.equal(losses, expected)


def test_a_label_of_minus_100_counts_for_nothing(build, token_batch):
    model = build("bert-classifier").eval()
    batch = token_batch([4, 4], labels=[-100, 1])
    task = task_of(model)
    losses = losses_of(task, model, batch)
    assert losses[0] == 0 and losses[1] > 0 and task.targets(batch).tolist() == [0, 1]


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_the_prediction_stands_in_for_absent_labels(build, token_batch, problem_type):
    model = build("bert-classifier", problem_type=problem_type).eval()
    batch = token_batch([5, 3, 4], labels=[0, 0, 0])
    predicted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    assert predicted.any()
    task = task_of(model)
    expected = losses_of(task, model, {**batch, "labels": predicted})
    del batch["labels"]
    assert torch.equal(losses_of(task, model, batch), expected)
    assert task.targets(batch).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"num_labels": 1},
        {"num_labels": 2, "problem_type": "regression"},
        {"num_labels": 2, "problem_type": "multi_label_classification"},
    ],
)
def test_no_prediction_stands_in_for_numbers(build, token_batch, options):
    model, batch = build("bert-classifier", **options).eval(), token_batch([4], labels=[0])
    del batch["labels"]
    name = options.get("problem_type", "regression")
    with pytest.raises(ObjectiveError, match=rf"A {name} query needs its target: pass \(text, label\)"):
        losses_of(task_of(model), model, batch)


@pytest.mark.parametrize(
    ("kind", "lora", "cls", "name", "auto"),
    [
        ("gpt2", None, CausalLM, "causal-lm", "AutoModelForCausalLM"),
        ("llama", {}, CausalLM, "causal-lm", "AutoModelForCausalLM"),
        (
            "bert-classifier",
            None,
            SequenceClassification,
            "sequence-classification",
            "AutoModelForSequenceClassification",
        ),
        (
            "llama-classifier",
            {},
            SequenceClassification,
            "sequence-classification",
            "AutoModelForSequenceClassification",
        ),
    ],
)
def test_the_task_is_found(build, kind, lora, cls, name, auto):
    model = build(kind, lora=lora)
    task = task_of(model)
    assert type(task) is cls and task.name == name and task.needs_labels
    assert auto_class(model) == auto


@pytest.mark.parametrize(
    "model",
    [
        BertModel,
        BertForTokenClassification,
        lambda config: nn.Linear(2, 2),
    ],
)
def test_a_model_of_no_known_task(model):
    model = model(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ObjectiveError, match=rf"known for {type(model).__name__}: .* Pass objective=, a function"):
        task_of(model)
    assert auto_class(model) is None


def test_a_users_own_objective(build, token_batch):
    model, batch = build("llama"), token_batch([4, 3])
    seen = []

    def mine(model, batch):
        seen.append((model, batch))
        return torch.arange(2.0)

    task = task_of(model, mine)
    assert type(task) is Custom and task.name == "custom" and not task.needs_labels
    assert losses_of(task, model, batch).tolist() == [0.0, 1.0]
    assert seen == [(model, batch)] and task.targets(batch) is None
    assert task_of(model, task) is task and task_of(model, "causal-lm").name == "causal-lm"


def test_forward_inputs(build, token_batch):
    model = build("llama", lora={})
    batch = {**token_batch([3]), "use_cache": True, "text": "x", "example_id": torch.tensor([1])}
    assert list(forward_inputs(model, batch)) == ["input_ids", "attention_mask"]


def test_batch_size():
    assert batch_size({"n": 3, "scalar": torch.tensor(1.0), "x": torch.zeros(4, 2)}) == 4
    assert batch_size({"x": torch.zeros(0, 2)}) == 0
