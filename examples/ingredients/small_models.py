"""Tokenizers and models that are made on the spot, and how they are trained and asked."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback, TrainingArguments
from transformers.utils import logging


def train_tokenizer(
    texts: Iterable[str], vocabulary: int = 2048, special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's, with `<pad>`, `<eos>` and what a chat template needs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>", *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def new_gpt2(tokenizer: PreTrainedTokenizerFast, width: int = 96, layers: int = 2) -> GPT2LMHeadModel:
    """A GPT-2 with random weights. Without dropout: at this size there is little to spare."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=128,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fresh_folder(folder: Path) -> Path:
    """A folder that is not there: an example trains another model at each run, whose index the old one is not."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def training_arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Arguments of a short, quiet training on the CPU, the same at every run."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    return TrainingArguments(**{**defaults, **changes})


def trained(trainer: Any) -> Any:
    """Train without a line for each training: an example prints what it shows."""
    trainer.remove_callback(PrinterCallback)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        trainer.train()
    finally:
        logging.set_verbosity(level)
    return trainer


def completion_rows(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Rows with "prompt" and "completion" as a model is trained on them: on the completion, and `<eos>`."""
    tokenized = []
    for row in rows:
        prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
        completion = [*completion, tokenizer.eos_token_id]
        text = row["prompt"] + row["completion"]
        tokenized.append(
            {**row, "text": text, "input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        )
    return Dataset.from_list(tokenized)


@torch.inference_mode()
def answers(
    model: Any, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_new_tokens: int = 12, batch_size: int = 64
) -> list[str]:
    """What the model says to each prompt, word by word the likeliest, up to `<eos>`."""
    model.eval()
    said = []
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(
            prompts[start : start + batch_size], padding=True, padding_side="left", return_tensors="pt"
        ).to(model.device)
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        said += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return said
