"""Every Trainer and every loss: the index holds the gradients of what the Trainer trained."""

import logging

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from dense import make_classifier
from tiny import VOCABULARY, make_rows
from transformers import (
    BartConfig,
    BartForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from truth import GRADIENTS, alone, relative_error

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import DatasetError


ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
}


def make_llama(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=0, **sizes))


def make_texts(count=10):
    return [" ".join(map(str, row["input_ids"])) for row in make_rows(count)]


def errors_of(index, trainer, dataset=None):
    """Relative error of each row's squared gradient, by autograd of `compute_loss` on a batch of that row."""
    loader = trainer.get_train_dataloader()
    dataset = loader.dataset if dataset is None else dataset
    modules = {name.removeprefix("base_model.model."): m for name, m in trainer.model.named_modules()}
    weights = [modules[entry.name].weight for entry in index.manifest.modules]
    trainer.model.eval()
    squares = []
    for row in range(len(dataset)):
        batch = loader.collate_fn([dataset[row]])
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(1))
        parts = torch.autograd.grad(loss, weights, allow_unused=True)
        squares.append(sum(float(part.double().square().sum()) for part in parts if part is not None))
    expected = torch.tensor(squares, dtype=torch.float64)
    return (index.self_influence() - expected).abs() / expected.max()


def trained(tmp_path, make, **options):
    callback = InfluenceCallback(tmp_path / "index", config=GRADIENTS, raise_errors=True, **options)
    trainer = make(tmp_path)
    trainer.add_callback(callback)
    trainer.train()
    return trainer, callback.index


class Squared(Trainer):
    """A loss that only this class knows."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = (outputs.logits.square().mean(dim=-1) * inputs["attention_mask"]).sum()
        return (loss, outputs) if return_outputs else loss


def focal(outputs, labels, num_items_in_batch=None):
    losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    count = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return (losses * (1 - torch.exp(-losses))).sum() / count


def plain(tmp_path, tokenizer, cls=Trainer, compute_loss_func=None, **arguments):
    rows = make_rows(10)
    return cls(
        model=make_llama(),
        args=TrainingArguments(str(tmp_path / "out"), **(ARGUMENTS | arguments)),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        compute_loss_func=compute_loss_func,
    )


@pytest.mark.parametrize(
    "options, objective",
    [
        ({}, "causal-lm"),
        ({"label_smoothing_factor": 0.2}, "trainer"),
        ({"compute_loss_func": focal}, "trainer"),
        ({"cls": Squared}, "trainer"),
    ],
    ids=["plain", "label smoothing", "compute_loss_func", "an overridden compute_loss"],
)
@pytest.mark.parametrize("passed", [True, False], ids=["trainer=", "found"])
def test_the_loss_of_the_trainer_is_what_is_recorded(tmp_path, tokenizer, options, objective, passed):
    def make(path):
        trainer = plain(path, tokenizer, **options)
        if passed:
            trainer.add_callback(
                InfluenceCallback(path / "passed", trainer=trainer, config=GRADIENTS, raise_errors=True)
            )
        return trainer

    trainer, index = trained(tmp_path, make)
    assert index.manifest.objective == objective
    assert float(errors_of(index, trainer).max()) < 1e-5
    if passed:
        other = InfluenceIndex.from_pretrained(tmp_path / "passed")
        assert other.manifest.objective == objective
        torch.testing.assert_close(other.self_influence(), index.self_influence())


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


def test_an_index_of_a_trainers_loss_is_queried_by_what_the_model_says(tmp_path, tokenizer):
    trainer, index = trained(tmp_path, lambda path: plain(path, tokenizer, label_smoothing_factor=0.2))
    rows = make_rows(10)
    scores = index.scores(trainer.model, [{"input_ids": rows[3]["input_ids"]}])
    assert scores.shape == (1, 10) and int(scores.argmax()) == 3
    assert index.examples([3])[0]["text"] == "text 3" and index.examples([3])[0]["example_id"] == "row-3"


def sft(tmp_path, tokenizer, **arguments):
    tokenizer.eos_token = "1"
    return SFTTrainer(
        model=make_llama(),
        args=SFTConfig(str(tmp_path / "out"), **(ARGUMENTS | {"max_length": 16} | arguments)),
        train_dataset=Dataset.from_dict({"text": make_texts()}),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(
    "options, objective",
    [
        ({}, "causal-lm"),
        ({"loss_type": "dft"}, "trainer"),
        ({"shuffle_dataset": True}, "causal-lm"),
        ({"packing": True}, "trainer"),
        ({"padding_free": True, "max_length": None}, "trainer"),
    ],
    ids=["nll", "dft", "shuffled", "packed", "padding-free"],
)
def test_sft(tmp_path, tokenizer, options, objective):
    trainer, index = trained(tmp_path, lambda path: sft(path, tokenizer, **options))
    assert index.manifest.objective == objective and len(index) == len(trainer.train_dataset)
    assert float(errors_of(index, trainer).max()) < 1e-5
    if "packing" not in options:  # each text stands beside its own tokens
        for row in (0, 4, 9):
            text, ids = index.examples([row])[0]["text"], trainer.train_dataset[row]["input_ids"]
            assert tokenizer(text)["input_ids"] == ids[: len(tokenizer(text)["input_ids"])]


def test_dpo_is_recorded_pair_by_pair(tmp_path, tokenizer):
    tokenizer.eos_token = "1"
    texts = make_texts()
    pairs = {"prompt": ["7 8 "] * 10, "chosen": texts, "rejected": texts[::-1]}

    def make(path):
        return DPOTrainer(
            model=make_llama(),
            ref_model=make_llama(seed=1),
            args=DPOConfig(str(path / "out"), max_length=32, **ARGUMENTS),
            train_dataset=Dataset.from_dict(pairs),
            processing_class=tokenizer,
        )

    trainer, index = trained(tmp_path, make)
    assert index.manifest.objective == "trainer" and index.manifest.alone and len(index) == 10
    assert float(errors_of(index, trainer).max()) < 1e-4


def test_a_trainer_whose_loss_is_of_no_row_is_refused_before_the_first_step(tmp_path, tokenizer):
    steps = []

    class Watching(InfluenceCallback):
        def on_step_end(self, *args, **kwargs):
            steps.append(1)

    tokenizer.eos_token = "1"
    trainer = GRPOTrainer(
        model=make_llama(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(str(tmp_path / "out"), max_completion_length=4, num_generations=2, **ARGUMENTS),
        train_dataset=Dataset.from_dict({"prompt": make_texts()}),
        processing_class=tokenizer,
        callbacks=[Watching(tmp_path / "index")],
    )
    with pytest.raises(DatasetError, match="data_collator returned a list: expected a dict of tensors"):
        trainer.train()
    assert not steps


def masked(tmp_path, tokenizer, callbacks=()):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=40, pad_token_id=0, **sizes)
    tokenizer.mask_token = "2"
    trainer = Trainer(
        model=RobertaForMaskedLM(config),
        args=TrainingArguments(str(tmp_path / "out"), seed=0, **(ARGUMENTS | {"max_steps": 4})),
        train_dataset=make_rows(10).remove_columns(["text", "example_id"]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.4),
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer.model, torch.rand(3)


def test_the_training_does_not_notice_the_callback(tmp_path, tokenizer):
    """A masking collator draws random numbers: one more draw would be another training."""
    without, draws = masked(tmp_path, tokenizer)
    callback = InfluenceCallback(tmp_path / "index", raise_errors=True)
    with_it, draws_after = masked(tmp_path, tokenizer, [callback])
    assert len(callback.index) == 10
    for (name, weight), other in zip(without.named_parameters(), with_it.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert torch.equal(draws, draws_after)


def test_little_coverage_is_warned_of_before_the_training(tmp_path, tokenizer, caplog):
    def make(path):
        trainer = plain(path, tokenizer)
        trainer.model.requires_grad_(False)
        trainer.model.model.embed_tokens.requires_grad_(True)
        trainer.model.model.layers[0].mlp.up_proj.requires_grad_(True)
        return trainer

    with caplog.at_level(logging.WARNING):
        _, index = trained(tmp_path, make)
    assert [entry.name for entry in index.manifest.modules] == ["model.layers.0.mlp.up_proj"]
    assert "32.4% of the trained parameters are tracked; left out: 67.6% a parameter of Embedding" in caplog.text
    assert index.coverage.share == 384 / (384 + 800)


def test_a_linear_probe_is_tracked_through_the_callback(tmp_path, tokenizer):
    def make(path):
        trainer = plain(path, tokenizer)
        trainer.model.requires_grad_(False)
        trainer.model.lm_head.requires_grad_(True)
        return trainer

    trainer, index = trained(tmp_path, make)
    assert [entry.name for entry in index.manifest.modules] == ["lm_head"] and index.coverage.share == 1
    assert float(errors_of(index, trainer).max()) < 1e-5


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
