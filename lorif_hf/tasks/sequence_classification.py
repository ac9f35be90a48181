"""Classifiers of whole sequences, and regressions of the same models."""

from typing import Any

from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from .base import Feature, Task, forward_inputs
from .classification import class_losses, class_number, class_predictions, class_targets
from .text import TextReader


class SequenceClassification(Task):
    """Cross-entropy, mean squared error or binary cross-entropy, by the model's `problem_type`, as transformers does.

    A query without labels is measured at the model's own prediction: why did the model say this?
    """

    name = "sequence-classification"
    auto_class = "AutoModelForSequenceClassification"
    needs_labels = True
    makes_labels = False
    labelled_queries = True
    query_example = '"A text to classify"'
    label_kind = "classes"

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return class_losses(model, _logits(model, batch), batch.get("labels"))

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return class_targets(batch)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return class_predictions(self.name, model, _logits(model, batch), batch.get("labels"))

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A text and its label, a name or a number."""
        return {**reader.encoded(text, number), "labels": class_number(reader.config, target, number)}

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model's own prediction can always be measured


def _logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = model(**forward_inputs(model, batch)).logits
    return logits.float()
