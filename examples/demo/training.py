"""A small GPT-2 and its tokenizer, trained from nothing, and what it says."""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from .facts import Question


MAX_TOKENS = 64


@dataclass(frozen=True)
class Recipe:
    """How a model is made: the same for each of the demo's trainings."""

    width: int = 128
    layers: int = 3
    epochs: float = 20
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model says to a question: its greedy continuation up to the end of the sentence, and the loss of the
    true answer, in nats, summed over its tokens."""

    text: str
    loss: float
    right: bool


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's, of 2,048 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def train(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    recipe: Recipe,
    callbacks: list[TrainerCallback] | None = None,
) -> GPT2LMHeadModel:
    """Train a new model on `rows` with `Trainer`; equal recipes begin with equal weights."""
    set_seed(recipe.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=MAX_TOKENS,
            n_embd=recipe.width,
            n_layer=recipe.layers,
            n_head=4,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            weight_decay=0.1,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            seed=recipe.seed,
        ),
        train_dataset=rows.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_TOKENS), batched=True
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


@torch.no_grad()
def answer(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, question: Question) -> Answer:
    """Ask a question: 12 tokens, the likeliest each time."""
    model.eval()
    prompt, wanted = (tokenizer(text, return_tensors="pt")["input_ids"] for text in question.pair)
    said = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(said[0, prompt.shape[1] :]).split(".")[0].strip()
    logits = model(torch.cat([prompt, wanted], 1)).logits[0, prompt.shape[1] - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, wanted[0], reduction="sum").item()
    return Answer(text, loss, text == question.answer)
