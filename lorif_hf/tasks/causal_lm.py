"""Causal language models."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from ..errors import QueryError
from .base import Feature, Task, forward_inputs
from .cross_entropy import IGNORED, cross_entropy
from .segments import sums_by_example
from .text import TextReader


class CausalLM(Task):
    """Cross-entropy of the next token, summed over the labels that are not -100."""

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    needs_labels = True
    makes_labels = True
    labelled_queries = False
    query_example = '("The capital of France is", " Paris")'
    label_kind = "tokens"
    labels_each_token = True

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape)
        return sums_by_example(losses, batch)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return sums_by_example((_next_tokens(batch) != IGNORED).long(), batch)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(**forward_inputs(model, batch)).logits.float(), _next_tokens(batch)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A prompt and its completion, measured on the completion alone."""
        if not isinstance(target, str):
            raise QueryError(f"Query {number} pairs a text with {target!r}: expected a (prompt, completion) pair.")
        return reader.completion(text, target, number)

    def check_query(self, feature: Feature, number: int) -> None:
        ids = feature.get("input_ids")
        if ids is None:
            return
        labels = torch.as_tensor(feature.get("labels", ids))
        if len(ids) < 2 or not bool((labels[1:] != IGNORED).any()):
            raise QueryError(
                f"Query {number} has no token to measure: a causal language model predicts each token from those "
                "before it, so at least two tokens are needed, one of them with a label other than -100."
            )


def _next_tokens(batch: dict[str, Any]) -> Tensor:
    """The label that each position predicts. The last predicts nothing, and neither does padding before the first
    token; of what comes after it, the labels say what is padding.

    Labels are shifted, not logits: a slice of those would have to be copied.
    """
    labels, mask = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED), batch.get("attention_mask")
    return labels if mask is None or mask.dim() != 2 else labels.masked_fill(mask.cumsum(dim=1) == 0, IGNORED)
