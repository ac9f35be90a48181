"""Extractive question answering: where in a text an answer begins and ends."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task, batch_size, forward_inputs
from .cross_entropy import IGNORED
from .model_classes import classes_of
from .text import TextReader


class QuestionAnswering(Task):
    """The mean of two cross-entropies over the tokens: of the answer's first one and of its last.

    A position beyond the tokens counts for nothing, as in transformers. A query without positions is measured at the
    model's own prediction.
    """

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '("Where does Anna live?", "Anna lives in Berlin.")'
    pair_columns = (("question", "context"),)
    label_names = ("start_positions", "end_positions")
    padding_counts = True  # an answer may begin at each of the tokens, padding too

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in classes_of("QUESTION_ANSWERING")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, positions = self.predictions(model, batch)
        losses = F.cross_entropy(logits.flatten(0, 1), positions.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view(-1, 2).sum(dim=1) / 2

    def targets(self, batch: dict[str, Any]) -> Tensor:
        places = [batch[name].reshape(-1) for name in self.label_names if name in batch]
        if not places:
            return torch.ones(batch_size(batch), dtype=torch.int64)
        length = next(value.shape[1] for value in batch.values() if isinstance(value, Tensor) and value.dim() > 1)
        return torch.stack([place.clamp_min(0) < length for place in places]).any(dim=0).long()

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (B, 2, T) over the tokens, and positions (B, 2): of the answer's first token and of its last."""
        inputs = {key: value for key, value in forward_inputs(model, batch).items() if key not in self.label_names}
        outputs = model(**inputs)
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float()
        places = [batch.get(name) for name in self.label_names]
        if any(place is None for place in places):
            return logits, logits.detach().argmax(dim=-1)
        positions = torch.stack([place.reshape(-1).clamp_min(0) for place in places if place is not None], dim=1)
        return logits, positions.masked_fill(positions >= logits.shape[-1], IGNORED)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A question and the text with its answer, measured where the model finds it."""
        if not isinstance(target, str):
            raise QueryError(f"Query {number} pairs a text with {target!r}: expected a (question, context) pair.")
        return dict(reader.encoded(text, number, text_pair=target))

    def check_query(self, feature: Feature, number: int) -> None:
        given = [name for name in self.label_names if feature.get(name) is not None]
        if len(given) == 1:
            raise QueryError(f"Query {number} has {given[0]} alone: pass both positions, or neither.")
