"""Sequence to sequence: translation, summaries."""

from typing import Any

import torch

from ..errors import QueryError
from .base import Feature
from .cross_entropy import IGNORED
from .decoding import EncoderDecoder
from .text import TextReader


class Seq2Seq(EncoderDecoder):
    """Cross-entropy of the target's tokens given the source, summed over the labels that are not -100.

    The model makes its decoder's inputs of the labels by itself, as in training.
    """

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    query_example = '("translate English to German: The house", "Das Haus")'
    decoded = ("input_ids", "labels")
    pair_columns = (("source", "target"), ("text", "target"), ("input", "target"), ("document", "summary"))
    table = "SEQ_TO_SEQ_CAUSAL_LM"

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
