"""What a user asks, turned into model inputs with something to measure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn

from ..errors import QueryError
from ..layers.modules import base_model
from .base import Feature, Task
from .chat import ChatReader
from .classification import class_number
from .collation import LABELS
from .model_inputs import ModelInputs
from .own_loss import RowLoss
from .query_media import AUDIO, IMAGE, MediaReader, is_image
from .query_pairs import PreferenceReader, check_differs, check_sides, sign_of
from .query_values import (
    check_no_listed_pair,
    check_no_split_pair,
    label_of,
    messages_of,
    shown,
    template_options,
    text_of,
)
from .text import TextReader


_FORMS = (
    "a string, a (prompt, completion) or (text, label) pair, a list of chat messages, a dict with input_ids, a list "
    "of these, or a Dataset"
)

# The keys of a dict without the model's inputs, as datasets have them: what it must hold, and what it may hold beside.
_LABEL = ("label", "labels")
_TEMPLATE = ("tools", "chat_template_kwargs")
_Keys = tuple[str, ...]
_PREFERENCES: dict[_Keys, _Keys] = {
    ("prompt", "chosen", "rejected"): _TEMPLATE,
    ("chosen", "rejected"): _TEMPLATE,
    ("prompt", "completion"): (*_TEMPLATE, "label"),
}
_PLAIN: dict[_Keys, _Keys] = {**_PREFERENCES, ("text",): (), ("messages",): _TEMPLATE}
_LABELLED: dict[_Keys, _Keys] = {("text",): ("text_pair", *_LABEL), ("messages",): (*_TEMPLATE, *_LABEL)}
_NAMES = ("id", "example_id")  # a row's name for people
_PICTURES = ("images", "image", "videos")
_TRANSCRIPTS = ("text", "sentence", "transcription")
_MASKS = ("completion_mask", "assistant_masks")  # TRL's names of which tokens were trained on


@dataclass(frozen=True)
class Query:
    """What of a query goes through the model.

    Args:
        features (`tuple[Feature, ...]`): one; of two completions, the chosen and then the rejected one.
        sign (`float`, *optional*, defaults to 1): -1 of a completion that was to become less likely.
    """

    features: tuple[Feature, ...]
    sign: float = 1.0

    @property
    def is_pair(self) -> bool:
        """Whether it is two completions."""
        return len(self.features) == 2


def read_queries(
    query: Any, model: nn.Module, task: Task, processing_class: Any, triples: bool = False
) -> list[Query]:
    """The queries, as the model takes them.

    Args:
        query: what the user passed: a string; a (prompt, completion) pair, measured on the completion alone; chat
            messages, measured on the last answer; a (text, label) or (image, label) pair for a classifier; an image of
            PIL's or the `Path` of one; a (prompt, chosen, rejected) triple in a list; a dict; a list of these; or a
            `Dataset`. A dict with the model's inputs (`input_ids`, `pixel_values`, `input_features`, ...) is one row,
            or a batch, as a training set has them: what the model takes of it counts, and its other columns are as
            harmless as in training. So is one with TRL's `chosen_ids` and `rejected_ids`. A dict without says its
            query under the names that datasets have: "text"; "prompt" and "completion", texts or chats; "chosen" and
            "rejected", with "prompt" or without; "messages"; with "tools" and "chat_template_kwargs" for chats;
            "text_pair" and "label" for classifiers; "image" or "audio", with "label" or "text". Its other keys are
            refused, but a row's "id" or "example_id".
        model (`nn.Module`): the unwrapped model.
        task (`Task`): decides what is measured.
        processing_class: the tokenizer, image processor, feature extractor or processor, for what is not tokens yet.
        triples (`bool`, *optional*, defaults to `False`): whether three strings in a tuple are a triple, not three
            texts.

    Raises:
        [`~lorif_hf.errors.QueryError`]: names the query and says what was expected.
    """
    check_no_split_pair(query)
    reader = _QueryReader(model, task, processing_class)
    items = [query] if _is_one(query) or (triples and _is_triple(query)) else _many(query)
    queries = [read for i, item in enumerate(items) for read in reader.queries(item, i)]
    if not queries:
        raise QueryError(f"The query is empty: expected {_FORMS}.")
    for i, read in enumerate(queries):
        for feature in read.features:
            reader.check(feature, i)
        check_differs(list(read.features), i)
    return queries


def query_features(query: Any, model: nn.Module, task: Task, processing_class: Any) -> list[Feature]:
    """One feature per query, of queries in every form but two completions; arguments and errors as of
    [`read_queries`]."""
    queries = read_queries(query, model, task, processing_class)
    for number, read in enumerate(queries):
        if read.is_pair or read.sign != 1:
            raise QueryError(
                f"Query {number} is a preference, of which no loss alone is known here: pass its completion, "
                "{'prompt': ..., 'completion': ...}."
            )
    return [read.features[0] for read in queries]


def _is_one(query: Any) -> bool:
    """Whether this is a single query rather than a collection of them."""
    if isinstance(query, Mapping):
        splits = list(query.values())
        if splits and all(hasattr(split, "column_names") for split in splits):
            raise QueryError(
                f"The query is a {type(query).__name__}: pass one of its splits, query['{next(iter(query))}']."
            )
        return True
    return isinstance(query, str) or is_image(query) or _is_pair(query) or _is_chat(query)


def _is_pair(query: Any) -> bool:
    if not isinstance(query, tuple) or len(query) != 2:
        return False
    if is_image(query[0]):
        return not is_image(query[1])
    return isinstance(query[0], str) and isinstance(query[1], (str, Real))


def _is_triple(query: Any) -> bool:
    return isinstance(query, tuple) and len(query) == 3 and all(isinstance(text, str) for text in query)


def _is_chat(query: Any) -> bool:
    """Whether a list is meant as a chat: every entry says who speaks."""
    return (
        isinstance(query, list) and bool(query) and all(isinstance(item, Mapping) and "role" in item for item in query)
    )


def _many(query: Any) -> Sequence[Any]:
    table = type(query).__module__.partition(".")[0]
    if table in ("pandas", "polars", "pyarrow"):
        raise QueryError(
            f"The query is a {type(query).__name__} of {table}, whose items are not its rows: pass a Dataset "
            "(datasets.Dataset.from_pandas and the like), or a list of dicts."
        )
    if not isinstance(query, Iterable):
        raise QueryError(f"Cannot read a query of type {type(query).__name__}: expected {_FORMS}.")
    return list(query)


class _QueryReader:
    """Reads queries in every form for one model and task."""

    def __init__(self, model: nn.Module, task: Task, processing_class: Any):
        self.task = task
        self.texts = TextReader(model, processing_class)
        self.chats = ChatReader(self.texts)
        self.media = MediaReader(processing_class)
        self.inputs = ModelInputs(model, task)
        self.rewards = task.labelled_queries and getattr(self.texts.config, "num_labels", 0) == 1
        self.preferences = PreferenceReader(task, self.texts, self.chats, whole=self.rewards)
        self.model_class = type(base_model(model)).__name__

    def queries(self, item: Any, number: int) -> list[Query]:
        """What the model takes of a query; a batch of tensors gives several."""
        if isinstance(item, Mapping):
            item = {key: value for key, value in item.items() if value is not None}
            check_sides(item, number)
            if "input_ids" not in item and ({"chosen_ids", "rejected_ids"} <= set(item) or "completion_ids" in item):
                return [self._signed(self.preferences.tokenized(item, number), item, number)]
            written = any(set(kind) <= set(item) for kind in self._kinds())
            if self.inputs.are_in(item) or (not written and self.inputs.may_be_in(item)):
                return [Query((self._masked(row),)) for row in self.inputs.rows(item, number)]
            return [self._written(item, number)]
        if is_image(item):
            return [self._seen({"image": item}, number)]
        if isinstance(item, tuple) and _is_pair(item) and is_image(item[0]):
            return [self._seen({"image": item[0], "label": item[1]}, number)]
        if isinstance(item, str) or _is_pair(item) or _is_triple(item) or _is_chat(item):
            self.inputs.check_text(number)
        if isinstance(item, str):
            return [Query((self._text(item, None, number),))]
        if _is_pair(item):
            text, target = item
            return [Query((self.task.query_pair(self.texts, text, target, number),))]
        if _is_triple(item):
            return [self._written(dict(zip(("prompt", "chosen", "rejected"), item, strict=True)), number)]
        if _is_chat(item):
            return [Query((self._chat(messages_of(item, "the chat", number), number, {}),))]
        check_no_listed_pair(item, number)
        raise QueryError(f"Cannot read query {number}, a {type(item).__name__}: expected {_FORMS}.")

    def check(self, feature: Feature, number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where the model cannot take a query, or nothing of it is measured."""
        self.inputs.check(feature, number)
        axes = self.inputs.token_axes
        self.texts.limits.check(feature, number, labels_are_tokens=self.task.makes_labels, axes=axes)
        if self.task.labelled_queries:
            self.texts.limits.check_class(feature, number)
        self.task.check_query(feature, number)

    def _masked(self, row: Feature) -> Feature:
        """A row whose trained tokens are told by masks instead of labels, with labels."""
        masks = [name for name in _MASKS if name in row]
        if not masks or not self.task.makes_labels or any(name in row for name in LABELS) or "input_ids" not in row:
            return row
        ids = torch.as_tensor(row["input_ids"])
        trained = torch.stack([torch.as_tensor(row[name]).bool() for name in masks]).all(dim=0)
        return {**row, "labels": ids.masked_fill(~trained, -100)} if trained.shape == ids.shape else row

    def _kinds(self) -> dict[_Keys, _Keys]:
        """What a dict without model inputs may hold."""
        kinds = dict(_LABELLED if self.task.labelled_queries else _PLAIN)
        if self.rewards:
            kinds = {**_PREFERENCES, **kinds}
        kinds = {**dict.fromkeys(self._pairs(), ()), **kinds}
        takes = set(self.inputs.names)
        if "pixel_values" in takes:
            kinds = {("image",): (*_LABEL, *_TRANSCRIPTS), **kinds}
        if takes & {"input_features", "input_values"}:
            kinds = {AUDIO: (*_LABEL, *_TRANSCRIPTS), **kinds}
        return kinds

    def _pairs(self) -> tuple[_Keys, ...]:
        """What the two halves of a pair are called."""
        known = self.task.inner if isinstance(self.task, RowLoss) else self.task
        usual = (("text", "target"),) if self.inputs.generates else ()
        return (*(known.pair_columns if known is not None else ()), *usual)

    def _written(self, item: dict[Any, Any], number: int) -> Query:
        """A query written under the names of a dataset's columns."""
        if IMAGE[1] in item and IMAGE[0] not in item:
            item = {IMAGE[0] if key == IMAGE[1] else key: value for key, value in item.items()}
        kinds = self._kinds()
        keys = [key for key in item if key not in _NAMES]
        pictures = [key for key in keys if key in _PICTURES]
        if pictures and ("messages" in keys or "prompt" in keys):
            raise QueryError(
                f"Query {number} is a chat with {shown(pictures)}: where they stand among its tokens, only the "
                "processor knows. Pass what it makes of both, a dict with input_ids, pixel_values and the labels of "
                "the answer (processor.apply_chat_template(messages, tokenize=True, return_dict=True))."
            )
        needed = next((kind for kind in kinds if set(kind) <= set(keys)), None)
        if needed is None:
            known = "; ".join(shown(kind) + (f" (and {shown(more)})" if more else "") for kind, more in kinds.items())
            raise QueryError(
                f"Cannot read query {number}, a dict with {shown(keys) or 'nothing'}: expected {_FORMS}. For "
                f"'{self.task.name}' a dict without input_ids holds {known}."
            )
        chat = not isinstance(item[needed[0]], str)
        accepted = [*needed, *(key for key in kinds[needed] if chat or key not in _TEMPLATE)]
        unknown = [key for key in keys if key not in accepted]
        if unknown:
            raise QueryError(
                f"Query {number} holds {shown(unknown)}, which means nothing to '{self.task.name}' beside "
                f"{shown(needed)}: accepted are {shown(accepted)}, and {shown(_NAMES)}. Leave it out (of a "
                "Dataset, with select_columns)."
            )
        if needed[0] in (*IMAGE, *AUDIO):
            return self._seen(item, number)
        self.inputs.check_text(number)
        options = template_options(item, number)
        if "rejected" in needed:
            return Query(tuple(self.preferences.pair(item, number, options)))
        if "completion" in needed:
            feature = self._completion(item, number, chat, options)
            rated = "label" in item and not chat
            return self._signed([self.preferences.closed(feature) if rated else feature], item, number)
        if needed in self._pairs():
            text, target = (text_of(item[key], key, number) for key in needed)
            return Query((self.task.query_pair(self.texts, text, target, number),))
        label = next((item[key] for key in _LABEL if key in item), None)
        if "messages" in needed:
            return Query((self._chat(messages_of(item["messages"], "'messages'", number), number, options, label),))
        return Query((self._text(item["text"], item.get("text_pair"), number, label),))

    def _signed(self, features: list[Feature], item: Mapping[Any, Any], number: int) -> Query:
        """A pair; or one completion, and whether it was to become likelier."""
        label = item.get("label") if len(features) == 1 and not self.rewards else None
        return Query(tuple(features), 1.0 if label is None else sign_of(label, number))

    def _completion(self, item: Mapping[Any, Any], number: int, chat: bool, options: dict[str, Any]) -> Feature:
        if chat:
            prompt, answer = (messages_of(item[key], f"'{key}'", number) for key in ("prompt", "completion"))
            return self.preferences.chat(prompt, answer, number, options)
        completion = text_of(item["completion"], "completion", number)
        if self.rewards:
            return self.preferences.text(item["prompt"], completion, number)
        return self.task.query_pair(self.texts, item["prompt"], completion, number)

    def _seen(self, item: Mapping[Any, Any], number: int) -> Query:
        """An image or a sound, with its label or what it says."""
        if "image" in item:
            if "pixel_values" not in self.inputs.names:
                raise QueryError(
                    f"Query {number} is an image, but a {self.model_class} takes none: it is a query of another task "
                    "than the index's."
                )
            feature = self.media.image(item["image"], number)
        else:
            feature = self.media.sound(item["audio"], number)
        (feature,) = self.inputs.rows(feature, number)
        label = next((item[key] for key in _LABEL if key in item), None)
        said = next((item[key] for key in _TRANSCRIPTS if key in item), None)
        if label is not None:
            return Query(({**feature, "labels": class_number(self.texts.config, label_of(label, number), number)},))
        if said is None:
            return Query((feature,))
        tokens = self.texts.tokens(text_of(said, "text", number), number)
        if self.inputs.generates and tokens[:1] == [getattr(self.texts.config, "decoder_start_token_id", None)]:
            tokens = tokens[1:]  # the model puts it there itself
        return Query(({**feature, "labels": tokens},))

    def _text(self, text: Any, pair: Any, number: int, label: Any = None) -> Feature:
        text = text_of(text, "text", number)
        if not self.task.labelled_queries:
            return {"input_ids": self.texts.tokens(text, number)}
        beside = {} if pair is None else {"text_pair": text_of(pair, "text_pair", number)}
        if label is None:
            return self.texts.encoded(text, number, **beside)
        feature = self.task.query_pair(self.texts, text, label_of(label, number), number)
        return {**feature, **self.texts.encoded(text, number, **beside)} if beside else feature

    def _chat(self, messages: list[Any], number: int, options: dict[str, Any], label: Any = None) -> Feature:
        if self.task.labelled_queries:
            tokens = {"input_ids": self.chats.tokens(messages, number, **options)}
            if label is None:
                return tokens
            return {**self.task.query_pair(self.texts, "", label_of(label, number), number), **tokens}
        if messages[-1]["role"] != "assistant":
            raise QueryError(
                f"Query {number} ends with a message of '{messages[-1]['role']}': the last one must be the "
                "assistant's answer, which is what gets attributed."
            )
        return self.chats.answer(messages[:-1], messages[-1:], number, **options)
