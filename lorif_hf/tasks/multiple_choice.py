"""Multiple choice: which of several sequences is the right one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task, batch_size, forward_inputs
from .cross_entropy import IGNORED
from .model_classes import classes_of
from .text import TextReader


class MultipleChoice(Task):
    """Cross-entropy of the right one of an example's choices; its `input_ids` are (choices, T).

    A query without a label is measured at the model's own prediction.
    """

    name = "multiple-choice"
    auto_class = "AutoModelForMultipleChoice"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '{"input_ids": [first, second], "labels": 0}'
    token_axes = 2

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in classes_of("MULTIPLE_CHOICE")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return F.cross_entropy(logits[:, 0], labels[:, 0], ignore_index=IGNORED, reduction="none")

    def targets(self, batch: dict[str, Any]) -> Tensor:
        labels = batch.get("labels")
        return torch.ones(batch_size(batch), dtype=torch.int64) if labels is None else (labels.view(-1) != IGNORED)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = model(**forward_inputs(model, batch)).logits.float()
        labels = batch.get("labels")
        labels = logits.detach().argmax(dim=-1) if labels is None else labels
        return logits.unsqueeze(1), labels.view(-1, 1)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise QueryError(
            f"Query {number} is a pair of texts, and a multiple choice has a sequence for each answer: pass a dict "
            "with input_ids of shape (choices, tokens), and labels where the right one is known."
        )

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model's own prediction can always be measured
