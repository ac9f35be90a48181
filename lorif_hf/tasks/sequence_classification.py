"""Classifiers of whole sequences, and regressions of the same models."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from ..errors import ObjectiveError
from ..layers.modules import base_model
from .base import Feature, Task, batch_size, forward_inputs, no_margin
from .class_labels import class_number
from .cross_entropy import IGNORED
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

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits = model(**forward_inputs(model, batch)).logits.float()
        problem = base_model(model).config.problem_type
        labels = batch.get("labels")
        if labels is None:
            labels = logits.detach().argmax(dim=-1)
            if problem in ("regression", "multi_label_classification") or logits.shape[-1] == 1:
                raise ObjectiveError(f"A {problem or 'regression'} query needs its target: pass (text, label).")
        if problem is None:
            integer = not labels.is_floating_point()
            problem = "multi_label_classification"
            if logits.shape[-1] == 1:
                problem = "regression"
            elif integer:
                problem = "single_label_classification"
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.view(-1), ignore_index=IGNORED, reduction="none")
        labels = labels.to(logits.dtype).view(logits.shape)
        if problem == "regression":
            return F.mse_loss(logits, labels, reduction="none").mean(dim=-1)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        size = batch_size(batch)
        labels = batch.get("labels")
        return torch.ones(size, dtype=torch.int64) if labels is None else (labels != IGNORED).reshape(size, -1).any(1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = model(**forward_inputs(model, batch)).logits.float()
        labels = batch.get("labels")
        labels = logits.detach().argmax(dim=-1) if labels is None else labels
        problem = base_model(model).config.problem_type
        if problem is None and labels.is_floating_point():
            problem = "multi_label_classification"
        if problem in ("regression", "multi_label_classification") or logits.shape[1] < 2:
            raise no_margin(self.name)
        return logits.unsqueeze(1), labels.view(-1, 1)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A text and its label, a name or a number."""
        target = class_number(reader.config, target, number)
        return {**reader.encoded(text, number), "labels": target}

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model's own prediction can always be measured
