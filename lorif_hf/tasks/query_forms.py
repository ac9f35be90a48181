"""What a user asks, turned into model inputs with something to measure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import nn

from ..errors import QueryError
from .base import Feature, Task
from .chat import ChatReader, is_chat, problem
from .text import TextReader, inner_tokenizer, is_failure


_FORMS = (
    "a string, a (prompt, completion) or (text, label) pair, a list of chat messages, a dict with input_ids, a list "
    "of these, or a Dataset"
)

# The keys of a dict without input_ids, as datasets for TRL and for classifiers have them: what it must hold, and what
# it may hold beside it.
_LABEL = ("label", "labels")
_TEMPLATE = ("tools", "chat_template_kwargs")
_Keys = tuple[str, ...]
_PLAIN: dict[_Keys, _Keys] = {("text",): (), ("prompt", "completion"): _TEMPLATE, ("messages",): _TEMPLATE}
_LABELLED: dict[_Keys, _Keys] = {("text",): ("text_pair", *_LABEL), ("messages",): (*_TEMPLATE, *_LABEL)}
_NAMES = ("id", "example_id")  # a row's name for people


def query_features(query: Any, model: nn.Module, task: Task, processing_class: Any) -> list[Feature]:
    """One feature per query, as the model takes them.

    Args:
        query: what the user passed: a string; a (prompt, completion) pair, measured on the completion alone; chat
            messages, measured on the last answer; a (text, label) pair for a classifier; a dict; a list of these; or
            a `Dataset`. A dict with `input_ids` is one row, or a batch, as a training set has them: what the model
            takes of it counts, and its other columns are as harmless as in training. A dict without says its query
            under the names that datasets have: "text"; "prompt" and "completion", texts or chats; "messages"; with
            "tools" and "chat_template_kwargs" for chats, and with "text_pair" and "label" for classifiers. Its other
            keys are refused, but a row's "id" or "example_id".
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
    """A query as a person reads it; its first tokens where it cannot be decoded."""
    ids = feature.get("input_ids")
    if ids is None:
        return ""
    ids = torch.as_tensor(ids).tolist()
    tokenizer = inner_tokenizer(processing_class)
    if tokenizer is not None:
        try:
            return str(tokenizer.decode(ids))
        except BaseException as error:
            if not is_failure(error):
                raise
    return " ".join(map(str, ids[:32]))


def _is_one(query: Any) -> bool:
    """Whether this is a single query rather than a collection of them."""
    return isinstance(query, (str, Mapping)) or _is_pair(query) or (isinstance(query, list) and _is_chat(query))


def _is_pair(query: Any) -> bool:
    if not isinstance(query, tuple) or len(query) != 2:
        return False
    return isinstance(query[0], str) and isinstance(query[1], (str, Real))


def _is_chat(query: Any) -> bool:
    """Whether a list is meant as a chat: every entry says who speaks."""
    return bool(query) and all(isinstance(item, Mapping) and "role" in item for item in query)


def _many(query: Any) -> Sequence[Any]:
    if not isinstance(query, Iterable):
        raise QueryError(f"Cannot read a query of type {type(query).__name__}: expected {_FORMS}.")
    return list(query)


class _QueryReader:
    """Reads queries in every form for one model and task."""

    def __init__(self, model: nn.Module, task: Task, processing_class: Any):
        self.task = task
        self.texts = TextReader(model, processing_class)
        self.chats = ChatReader(self.texts)

    def features(self, item: Any, number: int) -> list[Feature]:
        """What the model takes of a query; a batch of tensors gives several."""
        if isinstance(item, Mapping):
            item = {key: value for key, value in item.items() if value is not None}
            return self._split(item, number) if "input_ids" in item else [self._written(item, number)]
        if isinstance(item, str):
            return [self._text(item, None, number)]
        if isinstance(item, tuple) and _is_pair(item):
            text, target = item
            return [self.task.query_pair(self.texts, text, target, number)]
        if isinstance(item, list) and _is_chat(item):
            return [self._chat(_messages(item, "the chat", number), number, {})]
        raise QueryError(f"Cannot read query {number}, a {type(item).__name__}: expected {_FORMS}.")

    def check(self, feature: Feature, number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where the model cannot take a query, or nothing of it is measured."""
        if self.task.token_axes == 1:
            self.texts.limits.check(feature, number, labels_are_tokens=self.task.makes_labels)
        if self.task.labelled_queries:
            self.texts.limits.check_class(feature, number)
        if feature.get("input_ids") is not None:
            self.task.check_query(feature, number)

    def _written(self, item: dict[Any, Any], number: int) -> Feature:
        """A query written under the names of a dataset's columns."""
        pairs: dict[_Keys, _Keys] = dict.fromkeys(self.task.pair_columns, ())
        kinds = {**pairs, **(_LABELLED if self.task.labelled_queries else _PLAIN)}
        keys = [key for key in item if key not in _NAMES]
        needed = next((kind for kind in kinds if set(kind) <= set(keys)), None)
        if needed is None:
            known = "; ".join(
                _shown(kind) + (f" (and {_shown(more)})" if more else "") for kind, more in kinds.items()
            )
            raise QueryError(
                f"Cannot read query {number}, a dict with {_shown(keys) or 'nothing'}: expected {_FORMS}. For "
                f"'{self.task.name}' a dict without input_ids holds {known}."
            )
        chat = not isinstance(item[needed[0]], str)
        accepted = [*needed, *(key for key in kinds[needed] if chat or key not in _TEMPLATE)]
        unknown = [key for key in keys if key not in accepted]
        if unknown:
            raise QueryError(
                f"Query {number} holds {_shown(unknown)}, which means nothing to '{self.task.name}' beside "
                f"{_shown(needed)}: accepted are {_shown(accepted)}, and {_shown(_NAMES)}. Leave it out (of a "
                "Dataset, with select_columns)."
            )
        if needed in pairs:
            text, target = (_text(item[key], key, number) for key in needed)
            return self.task.query_pair(self.texts, text, target, number)
        label = next((item[key] for key in _LABEL if key in item), None)
        options = _options(item, number)
        if "messages" in needed:
            return self._chat(_messages(item["messages"], "'messages'", number), number, options, label)
        if "prompt" not in needed:
            return self._text(item["text"], item.get("text_pair"), number, label)
        if not chat:
            completion = _text(item["completion"], "completion", number)
            return self.task.query_pair(self.texts, item["prompt"], completion, number)
        prompt, answer = (_messages(item[key], f"'{key}'", number) for key in needed)
        return self.chats.answer(prompt, answer, number, **options)

    def _text(self, text: Any, pair: Any, number: int, label: Any = None) -> Feature:
        text = _text(text, "text", number)
        if not self.task.labelled_queries:
            return {"input_ids": self.texts.tokens(text, number)}
        beside = {} if pair is None else {"text_pair": _text(pair, "text_pair", number)}
        if label is None:
            return self.texts.encoded(text, number, **beside)
        feature = self.task.query_pair(self.texts, text, _label(label, number), number)
        return {**feature, **self.texts.encoded(text, number, **beside)} if beside else feature

    def _chat(self, messages: list[Any], number: int, options: dict[str, Any], label: Any = None) -> Feature:
        if self.task.labelled_queries:
            tokens = {"input_ids": self.chats.tokens(messages, number, **options)}
            if label is None:
                return tokens
            return {**self.task.query_pair(self.texts, "", _label(label, number), number), **tokens}
        if messages[-1]["role"] != "assistant":
            raise QueryError(
                f"Query {number} ends with a message of '{messages[-1]['role']}': the last one must be the "
                "assistant's answer, which is what gets attributed."
            )
        return self.chats.answer(messages[:-1], messages[-1:], number, **options)

    def _split(self, batch: Feature, number: int) -> list[Feature]:
        try:
            ids = torch.as_tensor(batch["input_ids"])
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise QueryError(
                f"Query {number} has input_ids that are no row and no matrix ({error}): pass a list of dicts instead."
            ) from None
        if ids.dim() != self.task.token_axes + 1:
            return [batch]
        for key, value in batch.items():
            if not hasattr(value, "__len__") or isinstance(value, (str, Mapping)) or len(value) != len(ids):
                raise QueryError(
                    f"Query {number} is a batch of {len(ids)} rows, but its '{key}' has not one entry for each: pass "
                    "a list of dicts instead."
                )
        rows = [{key: value[i] for key, value in batch.items()} for i in range(len(ids))]
        mask = batch.get("attention_mask")
        if mask is None:
            return rows
        # Padding goes, so that a query does not depend on the batch it came in.
        kept = [torch.as_tensor(mask[i]).bool() for i in range(len(ids))]
        return [{key: _kept(value, keep) for key, value in row.items()} for row, keep in zip(rows, kept, strict=True)]


def _kept(value: Any, keep: torch.Tensor) -> Any:
    """Of an entry that has one value for each token, those of the tokens that are kept."""
    try:
        values = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value  # a text, say
    return values[keep] if values.shape == keep.shape else value


def _shown(keys: Iterable[Any]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _text(value: Any, key: str, number: int) -> str:
    if not isinstance(value, str):
        raise QueryError(f"Query {number} has '{key}' of type {type(value).__name__}: expected a string.")
    return value


def _label(value: Any, number: int) -> Any:
    """A label of a classifier: its name, its number, or the numbers of several."""
    try:
        if not isinstance(value, str):
            torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QueryError(
            f"Query {number} has a label of type {type(value).__name__} ({error}): expected a name, a number, or "
            "numbers."
        ) from None
    return value


def _messages(value: Any, what: str, number: int) -> list[Any]:
    """The messages of a chat."""
    if is_chat(value):
        return list(value)
    if not isinstance(value, (list, tuple)) or not value:
        shown = "empty" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
        raise QueryError(
            f"In query {number}, {what} is {shown}: expected a list of messages, each with role and content."
        )
    place, lacks = next((i, lacks) for i, lacks in enumerate(map(problem, value)) if lacks)
    raise QueryError(f"In query {number}, message {place} of {what} {lacks}: expected a dict with role and content.")


def _options(item: dict[str, Any], number: int) -> dict[str, Any]:
    """What of a query goes to the chat template beside the messages."""
    options = item.get("chat_template_kwargs", {})
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise QueryError(
            f"Query {number} has 'chat_template_kwargs' of type {type(options).__name__}: expected a dict."
        )
    tools = item.get("tools")
    if isinstance(tools, str):  # JSON, as TRL takes it
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise QueryError(f"Query {number} has 'tools' that are no JSON ({error}).") from None
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise QueryError(f"Query {number} has 'tools' of type {type(tools).__name__}: expected a list.")
    return {**({"tools": list(tools)} if tools else {}), **options}
