"""One run: the trainer it needs, the losses it measures, and what it makes of queries."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from retrained import QUERIES, ROWS, make_bank, make_trainer
from tiny import make_gpt2

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation.retraining.bank import RetrainBank
from lorif_hf.evaluation.retraining.retrain import retrain
from lorif_hf.evaluation.retraining.runs import RetrainJob, complete_features, plain_features
from lorif_hf.tasks.causal_lm import CausalLM


def nothing(train_dataset, seed):
    return None


def on_everything(train_dataset, seed):
    return make_trainer(ROWS, seed)


def diverged(train_dataset, seed):
    trainer = make_trainer(train_dataset, seed)
    trainer.train = lambda: trainer.model.transformer.wte.weight.data.mul_(float("nan") if seed else 1)
    return trainer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "make_trainer must return a transformers.Trainer with a model, got NoneType"),
        (on_everything, "has all 12 rows as its train_dataset, expected the 6 it was given: pass the first argument"),
        (
            diverged,
            r"Run 2 of 6 \(subset 0, seed 1\): the loss of query 0 is nan, .* the training diverged. Lower the",
        ),
    ],
)
def test_trainers_that_measure_nothing_are_refused(tmp_path, make, message):
    with pytest.raises(EvaluationError, match=message):
        make_bank(tmp_path / "bank", make)
    written = {path.name for path in (tmp_path / "bank").rglob("run-*")}
    assert written == ({"run-00001-of-00006.safetensors"} if make is diverged else set())


def test_classifiers_need_labels_in_their_queries(tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    def classify(train_dataset, seed):
        config = GPT2Config(
            vocab_size=50, n_positions=16, n_embd=12, n_layer=1, n_head=2, pad_token_id=0, bos_token_id=None
        )
        trainer = make_trainer(train_dataset, seed, model=GPT2ForSequenceClassification(config))
        trainer.data_collator = lambda rows: {
            "input_ids": torch.tensor([row["input_ids"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }
        return trainer

    rows = Dataset.from_dict({"input_ids": [[i, i + 1, i + 2] for i in range(1, 9)], "label": [0, 1] * 4})
    options = {"num_subsets": 2, "seeds": 2}
    with pytest.raises(EvaluationError, match=r"Query 1 has no label, and each retrained model may predict another"):
        retrain(classify, rows, [rows[0], {"input_ids": [1, 2]}], tmp_path / "bank", **options)
    with pytest.raises(
        EvaluationError, match="Query 1 has the entries .*token_type_ids, query 0 has attention_mask, i"
    ):
        more = {"input_ids": [1, 2], "label": 1, "token_type_ids": [0, 0]}
        retrain(classify, rows, [rows[0], more], tmp_path / "bank", **options)
    bank = retrain(classify, rows, rows.select([0, 3]), tmp_path / "bank", **options)
    assert bank.losses.shape == (2, 2) and 0 < float(bank.losses.min()) < float(bank.losses.max()) < 5
    assert RetrainBank.from_pretrained(tmp_path / "bank").queries[1]["labels"].tolist() == 1


def job(folder, features, **options):
    membership = np.array([[True, False] * 6, [False, True] * 6])
    values = {"objective": None, "processing_class": None, "batch_size": 2} | options
    return RetrainJob(make_trainer, ROWS, membership, [3, 4], features, folder=folder, **values)


def features(queries=QUERIES):
    return complete_features(queries, make_gpt2(), CausalLM(), None)


def test_a_run_is_finished_when_its_file_holds_the_losses_of_these_queries(tmp_path):
    made = job(tmp_path, features())
    assert made.count == 4 and made.name(2) == "Run 3 of 4 (subset 1, seed 3)" and not made.finished(2)
    made.run(2)
    assert made.finished(2) and made.losses(2).dtype == torch.float64 and not made.finished(0)
    assert not job(tmp_path, features(QUERIES.select([0]))).finished(2)
    made.path(2).write_bytes(made.path(2).read_bytes()[:-1])
    assert not made.finished(2)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_losses_do_not_depend_on_the_batch_nor_on_the_padding(tmp_path, batch_size):
    expected, batched = job(tmp_path / "a", features()), job(tmp_path / "b", features(), batch_size=batch_size)
    for made in (expected, batched):
        made.run(0)
    torch.testing.assert_close(batched.losses(0), expected.losses(0), rtol=1e-5, atol=0)


def test_the_same_queries_are_the_same_in_every_form():
    ids = QUERIES["input_ids"][:]
    forms = [QUERIES, [{"input_ids": row} for row in ids], [{"input_ids": torch.tensor(row).int()} for row in ids]]
    plain = [plain_features(features(form)) for form in forms]
    assert plain[0] == plain[1] == plain[2]
    assert plain[0][0] == {"attention_mask": [1] * len(ids[0]), "input_ids": ids[0], "labels": ids[0]}
