"""The losses of classifiers and regressions against the models' own."""

import pytest
import torch
from every_task import row_loss
from kinds import bert, rows_of
from trainings import ARGUMENTS, errors_of
from transformers import BertForSequenceClassification, Trainer, TrainingArguments
from truth import GRADIENTS, relative_error

from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import ObjectiveError
from lorif_hf.tasks import task_of
from lorif_hf.tasks.base import losses_of
from lorif_hf.tasks.collation import PaddingCollator


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


PAIRS = {
    "classes": ({"num_labels": 3}, lambda i: i % 3),
    "several": ({"num_labels": 3, "problem_type": "multi_label_classification"}, lambda i: [1.0, 0.0, float(i % 2)]),
    "a number": ({"num_labels": 1}, lambda i: i / 4),
}


@pytest.mark.parametrize("options, label", PAIRS.values(), ids=PAIRS)
def test_an_index_of_pairs_is_what_the_trainer_trained(tmp_path, options, label):
    rows = [
        row | {"token_type_ids": [int(place > 1) for place in range(len(row["input_ids"]))], "labels": label(i)}
        for i, row in enumerate(rows_of())
    ]
    model = bert(BertForSequenceClassification, **options)
    arguments = TrainingArguments(str(tmp_path / "out"), **ARGUMENTS)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=PaddingCollator(0))
    callback = InfluenceCallback(tmp_path / "index", config=GRADIENTS, raise_errors=True)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.index.manifest.objective == "sequence-classification" and not callback.index.manifest.alone
    assert float(errors_of(callback.index, trainer).max()) < 1e-5
    assert relative_error(callback.index, model, rows, row_loss) < 1e-5
