"""Losses that only their Trainer knows, and weights that change: told, and recorded as trained."""

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from dense import make_classifier
from tiny import VOCABULARY, make_rows
from trainings import ARGUMENTS, errors_of, make_llama, plain, trained
from transformers import (
    BartConfig,
    BartForCausalLM,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from truth import GRADIENTS, alone, relative_error

from lorif_hf.callbacks import InfluenceCallback


class Weighted(Trainer):
    """Class weights as transformers' documentation has them: a weighted mean."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 10.0, 1.0]))
        return (loss, outputs) if return_outputs else loss


def padded(features):
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.tensor([feature["input_ids"] + [0] * (width - len(feature["input_ids"])) for feature in features])
    labels = torch.tensor([feature["label"] for feature in features])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def classified(path, cls=Trainer, labels=None, model=None):
    rows = make_rows(12).remove_columns(["text", "example_id"])
    return cls(
        model=model or make_classifier(),
        args=TrainingArguments(str(path / "out"), **ARGUMENTS),
        train_dataset=rows.add_column("label", labels or [i % 3 for i in range(12)]),
        data_collator=padded,
    )


def test_a_loss_that_depends_on_the_batch_is_told(tmp_path, caplog):
    labels = [int(i in (5, 7)) for i in range(12)]
    trainer, index = trained(tmp_path, lambda path: classified(path, Weighted, labels))
    assert index.manifest.objective == "trainer"
    assert "loss of rows 0, 5 together is" in caplog.text
    assert "neither the sum nor the mean of their own" in caplog.text and "class weights in a mean" in caplog.text
    assert "pass objective='sequence-classification', which goes in batches" in caplog.text
    assert caplog.text.count("neither the sum") == 1  # before the training, and not again after it
    assert trainer.model is not None


def test_a_loss_of_the_users_own_that_is_a_mean_is_not_complained_of(tmp_path, tokenizer, caplog):
    class Same(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer, index = trained(tmp_path, lambda path: plain(path, tokenizer, cls=Same))
    assert index.manifest.objective == "trainer" and "neither the sum" not in caplog.text
    assert float(errors_of(index, trainer).max()) < 1e-5


def test_rows_without_a_target_prove_nothing(tmp_path, tokenizer):
    """The shortest and the longest row, and the first, have no label: others are compared."""

    def make(path):
        rows = make_rows(12).remove_columns(["text", "example_id"])
        lengths = [len(ids) for ids in rows["input_ids"]]
        silent = {0, lengths.index(min(lengths)), lengths.index(max(lengths))}
        labels = [[-100] * len(ids) if i in silent else list(ids) for i, ids in enumerate(rows["input_ids"])]
        return Trainer(
            model=make_llama(),
            args=TrainingArguments(
                str(path / "out"), **ARGUMENTS | {"per_device_train_batch_size": 2}, label_smoothing_factor=0.2
            ),
            train_dataset=rows.add_column("labels", labels),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )

    trainer, index = trained(tmp_path, make)
    assert index.manifest.objective == "trainer"
    assert float(errors_of(index, trainer).max()) < 1e-5


def test_what_has_no_gradient_yet_is_compared_after_the_training(tmp_path, caplog):
    """A head of zeros: no gradient reaches a layer before the first step."""

    class Late(Trainer):
        """Another loss than before, once the training is over."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, False, num_items_in_batch)
            return 2 * loss if self.state.global_step == 2 else loss

    Late.compute_loss.__module__ = "transformers.trainer"

    def make(path, cls):
        model = make_classifier()
        torch.nn.init.zeros_(model.score.weight)
        return classified(path, cls, model=model)

    trainer, index = trained(tmp_path, lambda path: make(path, Trainer))
    assert index.manifest.objective == "sequence-classification"
    assert "there is nothing to compare" in caplog.text
    assert float(errors_of(index, trainer).max()) < 1e-5
    trainer, index = trained(tmp_path / "late", lambda path: make(path, Late))
    assert index.manifest.objective == "trainer"


def test_a_callback_that_is_used_again_looks_for_its_trainer_again(tmp_path, tokenizer):
    callback = InfluenceCallback(tmp_path / "index", config=GRADIENTS, raise_errors=True)
    first = plain(tmp_path, tokenizer)
    first.add_callback(callback)
    first.train()
    assert callback.index.manifest.objective == "causal-lm"
    (tmp_path / "index").rename(tmp_path / "kept")
    second = plain(tmp_path, tokenizer, label_smoothing_factor=0.3)
    second.add_callback(callback)
    second.train()
    assert callback.trainer is second and callback.index.manifest.objective == "trainer"
    assert float(errors_of(callback.index, second).max()) < 1e-5


def test_a_layer_that_shows_only_after_the_training_is_left_out_and_said(tmp_path, tokenizer, caplog):
    """A branch behind a gate that is zero at first, whose weight is used in a way that cannot be followed."""

    class Gated(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.fc, self.gate = inner, torch.nn.Linear(16, 16), torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.inner(x) + self.gate * torch.einsum("bti,oi->bto", x, self.fc.weight) + 0.1 * self.fc(x)

    def make(path):
        trainer = plain(path, tokenizer)
        trainer.model.model.layers[1].mlp = Gated(trainer.model.model.layers[1].mlp)
        return trainer

    trainer, index = trained(tmp_path, make)
    assert "'model.layers.1.mlp.fc'" in caplog.text and "left out of the index" in caplog.text
    assert "model.layers.1.mlp.fc" not in {entry.name for entry in index.manifest.modules}
    (reason,) = {u.reason for u in index.coverage.untracked if u.name == "model.layers.1.mlp.fc.weight"}
    assert reason == "what would be recorded of it differs from autograd's gradient"
    assert float(errors_of(index, trainer).max()) < 1e-5


def test_what_was_trained_is_remembered_from_the_start(tmp_path, tokenizer):
    class Freezes(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            model.requires_grad_(False)

    def make(path):
        trainer = plain(path, tokenizer)
        trainer.model.requires_grad_(False)
        trainer.model.model.layers[1].requires_grad_(True)
        trainer.add_callback(Freezes())
        return trainer

    _, index = trained(tmp_path, make)
    assert {entry.name.split(".")[2] for entry in index.manifest.modules} == {"1"}
    assert index.coverage.share > 0.9


def test_what_a_loss_logs_is_not_logged_for_rows_that_are_only_looked_at(tmp_path, tokenizer):
    class Logs(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            self.log({"mine": 1.0})
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer, index = trained(tmp_path, lambda path: plain(path, tokenizer, cls=Logs))
    assert len(index) == 10 and sum("mine" in entry for entry in trainer.state.log_history) == 2  # one a step
    assert "log" not in vars(trainer)


def test_queries_of_a_model_that_does_not_shift_are_measured_by_its_own_loss(tmp_path, tokenizer):
    def make(path):
        torch.manual_seed(0)
        sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
        config = BartConfig(vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=0, init_std=0.2, **sizes)
        trainer = plain(path, tokenizer)
        return Trainer(
            model=BartForCausalLM(config),
            args=trainer.args,
            train_dataset=trainer.train_dataset,
            data_collator=trainer.data_collator,
        )

    trainer, index = trained(tmp_path, make)
    assert index.manifest.objective == "trainer"
    rows = [{"input_ids": row["input_ids"]} for row in make_rows(10)]

    def own(model, row):
        batch = alone(row)
        return model(**batch).loss * batch["labels"].numel()

    assert relative_error(index, trainer.model, rows, own) < 1e-5


@pytest.mark.parametrize("how", ["an instance's method", "wraps", "the model's loss_function"])
def test_a_users_loss_is_told_by_its_code_and_not_by_what_it_says(tmp_path, tokenizer, how):
    def mine(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    class Wrapped(Trainer):
        compute_loss = functools.wraps(Trainer.compute_loss)(mine)

    def make(path):
        trainer = plain(path, tokenizer, cls=Wrapped if how == "wraps" else Trainer)
        if how == "an instance's method":
            trainer.compute_loss = types.MethodType(mine, trainer)
        elif how == "the model's loss_function":
            trainer.model.loss_function = trainer.model.loss_function
        return trainer

    assert trained(tmp_path, make)[1].manifest.objective == "trainer"
