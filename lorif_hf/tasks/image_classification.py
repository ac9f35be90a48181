"""Classifiers of images."""

from typing import Any

from torch import Tensor, nn

from .base import Feature, Task, forward_inputs
from .classification import class_losses, class_predictions, class_targets, no_text
from .model_classes import classes_of
from .text import TextReader


class ImageClassification(Task):
    """Cross-entropy, mean squared error or binary cross-entropy, by the model's `problem_type`, as transformers does.

    A query is a dict of the model's inputs; without labels it is measured at the model's own prediction.
    """

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    needs_labels = True
    makes_labels = False
    labelled_queries = True
    query_example = '{"pixel_values": pixels}'
    label_kind = "classes"
    decoded = ()

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in classes_of("IMAGE_CLASSIFICATION")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return class_losses(model, _logits(model, batch), batch.get("labels"))

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return class_targets(batch)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return class_predictions(self.name, model, _logits(model, batch), batch.get("labels"))

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise no_text("an image classifier", "pixel_values", number)

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model's own prediction can always be measured


def _logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = model(**forward_inputs(model, batch)).logits
    return logits.float()
