"""Sequence to sequence: translation, summaries."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task
from .cross_entropy import IGNORED, cross_entropy
from .decoding import decoder_logits
from .model_classes import classes_of
from .text import TextReader


class Seq2Seq(Task):
    """Cross-entropy of the target's tokens given the source, summed over the labels that are not -100.

    The model makes its decoder's inputs of the labels by itself, as in training.
    """

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '("translate English to German: The house", "Das Haus")'
    label_kind = "tokens"
    decoded = ("input_ids", "labels")
    pair_columns = (("source", "target"), ("text", "target"), ("input", "target"), ("document", "summary"))

    def accepts(self, model: nn.Module) -> bool:
        encodes: Any = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return bool(encodes) and type(model).__name__ in classes_of("SEQ_TO_SEQ_CAUSAL_LM")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return decoder_logits(model, batch), batch["labels"]

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A source and its target, measured on the target."""
        if not isinstance(target, str):
            raise QueryError(f"Query {number} pairs a text with {target!r}: expected a (source, target) pair.")
        return reader.encoded(text, number, text_target=target)

    def check_query(self, feature: Feature, number: int) -> None:
        labels = feature.get("labels")
        if labels is None:
            raise QueryError(
                f"Query {number} has a source alone: a sequence-to-sequence model is asked for a target. Pass "
                "(source, target), or a dict with input_ids and labels."
            )
        if not bool((torch.as_tensor(labels) != IGNORED).any()):
            raise QueryError(f"Query {number} has nothing to measure: all its labels are -100.")
