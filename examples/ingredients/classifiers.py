"""A small classifier of texts that is made and trained on the spot."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from .small_models import trained, training_arguments


MAX_TOKENS = 48


def encoded(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Rows with "text" and "label", and whatever else they have, tokenized."""
    tokens = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_TOKENS)
    return Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]} | dict(tokens))


def train_classifier(
    dataset: Dataset,
    labels: list[str],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    epochs: float,
    seed: int = 0,
    **options: Any,
) -> Trainer:
    """A one-layer ModernBERT, from random weights, that classifies by the mean of its last states.

    Args:
        options: more arguments of `Trainer`.
    """
    set_seed(seed)
    model = ModernBertForSequenceClassification(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            classifier_pooling="mean",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
            id2label=dict(enumerate(labels)),
            label2id={name: label for label, name in enumerate(labels)},
        )
    )
    args = training_arguments(folder, num_train_epochs=epochs, learning_rate=3e-3, seed=seed)
    return trained(Trainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer, **options))


def predicted(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """The label that it gives each row, (N,)."""
    return trainer.predict(dataset).predictions.argmax(axis=1)
