"""Masked language models."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task, forward_inputs
from .cross_entropy import IGNORED, cross_entropy
from .model_classes import classes_of
from .text import TextReader, tokenizer_errors


class MaskedLM(Task):
    """Cross-entropy of the tokens behind the masks, summed over the labels that are not -100.

    Rows have their own masks and labels, or a collator draws them (`DataCollatorForLanguageModeling`): then once for
    each row, from a seed and the row's number, so that a row is masked alike in the check, in every pass, when a build
    goes on, and at every batch size. (The training drew them anew in each epoch: an index holds one draw of them.)
    """

    name = "masked-lm"
    auto_class = "AutoModelForMaskedLM"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '("The capital of France is [MASK].", "Paris")'
    label_kind = "tokens"
    labels_each_token = True
    pair_columns = (("text", "target"), ("text", "answer"))

    def accepts(self, model: nn.Module) -> bool:
        """Those of another table too (BART, XLM) are trained otherwise as a rule; the check tells if they are not."""
        name = type(model).__name__
        others = classes_of("SEQ_TO_SEQ_CAUSAL_LM") | classes_of("CAUSAL_LM")
        return name in classes_of("MASKED_LM") and name not in others

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(**forward_inputs(model, batch)).logits.float(), batch["labels"]

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A text with masks, and the text that stands behind them."""
        if not isinstance(target, str):
            raise QueryError(f"Query {number} pairs a text with {target!r}: expected a (masked text, answer) pair.")
        feature = reader.encoded(text, number)
        with tokenizer_errors(number):
            mask = getattr(reader.tokenizer, "mask_token_id", None)
        ids = torch.tensor(feature["input_ids"], dtype=torch.int64)
        places = (ids == mask).nonzero()[:, 0] if mask is not None else ids[:0]
        hidden = self._hidden(reader, target, len(places), number)
        labels = torch.full_like(ids, IGNORED)
        labels[places] = torch.tensor(hidden)
        return {**feature, "labels": labels.tolist()}

    def _hidden(self, reader: TextReader, target: str, places: int, number: int) -> list[int]:
        """The tokens behind so many masks. Within a text a word may have a space before it."""
        ways = [reader.tokens(text, number, add_special_tokens=False) for text in (target, f" {target}")]
        for tokens in ways:
            if places and len(tokens) == places:
                return tokens
        counts = " or ".join(map(str, sorted({len(tokens) for tokens in ways})))
        raise QueryError(
            f"Query {number} has {places} masks in its text, and its answer has {counts} tokens: write the mask token "
            "of the tokenizer once for each token of the answer, as in ('The capital of France is [MASK].', 'Paris')."
        )

    def check_query(self, feature: Feature, number: int) -> None:
        ids, labels = feature.get("input_ids"), feature.get("labels")
        if labels is None:
            raise QueryError(
                f"Query {number} has nothing to measure: a masked language model is asked for what stands behind its "
                "masks. Pass (text with mask tokens, answer), or a dict with input_ids and labels, -100 at every "
                "token that is not asked for."
            )
        if ids is not None and len(labels) != len(ids):
            raise QueryError(f"Query {number} has {len(ids)} tokens, but {len(labels)} labels: expected as many.")
        if not bool((torch.as_tensor(labels) != IGNORED).any()):
            raise QueryError(f"Query {number} has nothing to measure: all its labels are -100.")
