"""Classifiers of whole sequences, and regressions of the same models."""

from typing import Any

from .base import Feature
from .classification import Classifier, class_number
from .text import TextReader


class SequenceClassification(Classifier):
    """Cross-entropy, mean squared error or binary cross-entropy, by the model's `problem_type`, as transformers does.

    A query without labels is measured at the model's own prediction: why did the model say this?
    """

    name = "sequence-classification"
    auto_class = "AutoModelForSequenceClassification"
    query_example = '"A text to classify"'
    table = "SEQUENCE_CLASSIFICATION"

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A text and its label, a name or a number."""
        return {**reader.encoded(text, number), "labels": class_number(reader.config, target, number)}
