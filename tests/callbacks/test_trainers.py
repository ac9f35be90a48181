"""Every Trainer and every loss: the index holds the gradients of what the Trainer trained."""

import logging

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tiny import VOCABULARY, make_rows
from trainings import ARGUMENTS, errors_of, make_llama, make_texts, plain, trained
from transformers import (
    DataCollatorForLanguageModeling,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from truth import GRADIENTS

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import DatasetError


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
        ({"padding_free": True, "max_length": None}, "causal-lm"),
    ],
    ids=["nll", "dft", "shuffled", "padding-free"],
)
def test_sft(tmp_path, tokenizer, options, objective):
    trainer, index = trained(tmp_path, lambda path: sft(path, tokenizer, **options))
    assert index.manifest.objective == objective and len(index) == len(trainer.train_dataset)
    assert float(errors_of(index, trainer).max()) < 1e-5
    for row in (0, 4, 9):  # each text stands beside its own tokens
        text, ids = index.examples([row])[0]["text"], trainer.train_dataset[row]["input_ids"]
        assert tokenizer(text)["input_ids"] == ids[: len(tokenizer(text)["input_ids"])]


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
    assert "32.4% of the trained parameters are tracked; left out: 67.6% of the kind 'embedding'" in caplog.text
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
