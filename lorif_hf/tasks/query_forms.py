"""What a user asks, turned into model inputs with something to measure."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import QueryError
from .base import Feature, Task
from .text import TextReader


_FORMS = (
    "a string, a (prompt, completion) or (text, label) pair, a list of chat messages, a dict with input_ids, a list "
    "of these, or a Dataset"
)


def query_features(query: Any, model: nn.Module, task: Task, processing_class: Any) -> list[Feature]:
    """One feature per query, as the model takes them.

    Args:
        query: what the user passed: a string; a (prompt, completion) pair, measured on the completion alone; chat
            messages, measured on the last answer; a (text, label) pair for a classifier; a dict (one feature, or a
            batch of tensors); a list of these; or a `Dataset`.
        model (`nn.Module`): the unwrapped model.
        task (`Task`): decides what is measured.
        processing_class: the tokenizer, needed for text.

    Raises:
        [`~lorif_hf.errors.QueryError`]: names the query and says what was expected.
    """
    reader = _QueryReader(model, task, processing_class)
    items = [query] if _is_one(query) else _many(query)
    features = [feature for i, item in enumerate(items) for feature in reader.features(item, i)]
    if not features:
        raise QueryError(f"The query is empty: expected {_FORMS}.")
    for i, feature in enumerate(features):
        reader.check(feature, i)
    return features


def query_text(feature: Feature, processing_class: Any) -> str:
    """A query as a person reads it."""
    ids = feature.get("input_ids")
    if ids is None:
        return ""
    ids = torch.as_tensor(ids).tolist()
    return processing_class.decode(ids) if processing_class is not None else " ".join(map(str, ids[:32]))


def _is_one(query: Any) -> bool:
    """Whether this is a single query rather than a collection of them."""
    if isinstance(query, (str, Mapping)):
        return True
    if isinstance(query, tuple):
        return len(query) == 2 and isinstance(query[0], str) and isinstance(query[1], (str, int, float))
    return isinstance(query, list) and bool(query) and all(_is_message(item) for item in query)


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item and "content" in item


def _many(query: Any) -> Sequence[Any]:
    if not isinstance(query, Iterable):
        raise QueryError(f"Cannot read a query of type {type(query).__name__}: expected {_FORMS}.")
    return list(query)


class _QueryReader:
    """Reads queries in every form for one model and task."""

    def __init__(self, model: nn.Module, task: Task, processing_class: Any):
        self.task = task
        self.texts = TextReader(model, processing_class)

    def features(self, item: Any, number: int) -> list[Feature]:
        """What the model takes of a query; a batch of tensors gives several."""
        if isinstance(item, Mapping) and "input_ids" in item:
            return self._split(dict(item), number)
        if isinstance(item, Mapping) and {"prompt", "completion"} <= set(item):
            item = (item["prompt"], item["completion"])
        if isinstance(item, Mapping) and "messages" in item:
            item = item["messages"]
        if isinstance(item, Mapping) and "text" in item:
            label = item.get("label", item.get("labels")) if self.task.labelled_queries else None
            item = item["text"] if label is None else (item["text"], label)
        if isinstance(item, str):
            return [{"input_ids": self.texts.tokens(item, number)}]
        if isinstance(item, tuple) and _is_one(item):
            text, target = item
            return [self.task.query_pair(self.texts, text, target, number)]
        if isinstance(item, list) and item and all(_is_message(message) for message in item):
            return [self._chat(item, number)]
        raise QueryError(f"Cannot read query {number}, a {type(item).__name__}: expected {_FORMS}.")

    def check(self, feature: Feature, number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where the model cannot take a query, or nothing of it is measured."""
        ids = feature.get("input_ids")
        if ids is None:
            return
        config, vocabulary = self.texts.config, self.texts.vocabulary
        ids = torch.as_tensor(ids)
        if ids.numel() == 0:
            raise QueryError(f"Query {number} is empty: it has no token.")
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        if limit and len(ids) > limit:
            raise QueryError(f"Query {number} has {len(ids)} tokens, the model takes at most {limit}: shorten it.")
        unknown = ids[(ids < 0) | (ids >= vocabulary)] if vocabulary else ids[:0]
        if len(unknown):
            raise QueryError(
                f"Query {number} holds token {int(unknown[0])}, the model knows {vocabulary}: it was made with "
                "another tokenizer."
            )
        self.task.check_query(feature, number)

    def _split(self, batch: Feature, number: int) -> list[Feature]:
        try:
            ids = torch.as_tensor(batch["input_ids"])
        except (TypeError, ValueError) as error:
            raise QueryError(
                f"Query {number} has input_ids that are no row and no matrix ({error}): pass a list of dicts instead."
            ) from None
        if ids.dim() < 2:
            return [{key: value for key, value in batch.items() if value is not None}]
        rows = [{key: value[i] for key, value in batch.items() if value is not None} for i in range(len(ids))]
        mask = batch.get("attention_mask")
        if mask is None:
            return rows
        # Padding goes, so that a query does not depend on the batch it came in.
        kept = [torch.as_tensor(mask[i]).bool() for i in range(len(ids))]
        return [
            {k: torch.as_tensor(v)[keep] if torch.as_tensor(v).shape == keep.shape else v for k, v in row.items()}
            for row, keep in zip(rows, kept, strict=True)
        ]

    def _chat(self, messages: list[Any], number: int) -> Feature:
        if messages[-1]["role"] != "assistant":
            raise QueryError(
                f"Query {number} ends with a message of '{messages[-1]['role']}': the last one must be the "
                "assistant's answer, which is what gets attributed."
            )
        if getattr(self.texts.tokenizer, "chat_template", None) is None:
            raise QueryError(f"Query {number} is a chat, but the tokenizer has no chat template: pass text instead.")
        whole = self._template(messages)
        start = self._template(messages[:-1], add_generation_prompt=True)
        if whole[: len(start)] != start:  # a template without a prompt for the answer, or one that closes the chat
            asked = self._template(messages[:-1])
            pairs = zip(asked, whole, strict=False)
            start = [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :]}

    def _template(self, messages: list[Any], **options: Any) -> list[int]:
        encoded = self.texts.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        return list(encoded["input_ids"])
