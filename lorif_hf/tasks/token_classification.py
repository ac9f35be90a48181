"""Classifiers of single tokens: names, parts of speech."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task, batch_size, forward_inputs
from .cross_entropy import IGNORED, cross_entropy
from .model_classes import classes_of
from .text import TextReader


class TokenClassification(Task):
    """Cross-entropy of each token's class, summed over the labels that are not -100.

    A query without labels is measured at the model's own prediction of each of its tokens.
    """

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '"Anna lives in Berlin"'
    label_kind = "classes"
    labels_each_token = True

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in classes_of("TOKEN_CLASSIFICATION")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        if "labels" in batch:
            return (batch["labels"] != IGNORED).sum(dim=1)
        mask = batch.get("attention_mask")
        return torch.ones(batch_size(batch), dtype=torch.int64) if mask is None else mask.sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = model(**forward_inputs(model, batch)).logits.float()
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if labels is None:
            labels = logits.detach().argmax(dim=-1)
            labels = labels if mask is None else labels.masked_fill(mask == 0, IGNORED)
        return logits, labels

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise QueryError(
            f"Query {number} pairs a text with {target!r}, and a token classifier has a label for each token: pass "
            "the text alone, which is measured at the model's own predictions, or a dict with input_ids and labels."
        )

    def check_query(self, feature: Feature, number: int) -> None:
        ids, labels = feature.get("input_ids"), feature.get("labels")
        if labels is not None and ids is not None and len(labels) != len(ids):
            raise QueryError(f"Query {number} has {len(ids)} tokens, but {len(labels)} labels: expected as many.")
        if labels is not None and not bool((torch.as_tensor(labels) != IGNORED).any()):
            raise QueryError(f"Query {number} has nothing to measure: all its labels are -100.")
