"""Two completions of a prompt as queries: which rows made the model prefer the one to the other?"""

from collections.abc import Mapping
from typing import Any

from ..errors import QueryError
from .base import Feature, Task
from .chat import ChatReader
from .query_values import messages_of, text_of, tokens_of
from .text import TextReader


SIDES = ("chosen", "rejected")


def check_sides(item: Mapping[Any, Any], number: int) -> None:
    """Raises [`~lorif_hf.errors.QueryError`] where one side of a preference is missing."""
    for ending in ("", "_ids"):
        given = [side + ending for side in SIDES if side + ending in item]
        if len(given) == 1:
            (lacking,) = (side + ending for side in SIDES if side + ending not in given)
            raise QueryError(
                f"Query {number} has '{given[0]}' but no '{lacking}': a preference has both. Of one completion, ask "
                "{'prompt': ..., 'completion': ...}."
            )


class PreferenceReader:
    """Makes features of completions and of pairs of them.

    Args:
        task (`Task`): of the model.
        texts (`TextReader`), chats (`ChatReader`): read the query's texts and chats.
        whole (`bool`): whether a completion is read as one sequence with its prompt, as reward models do, instead of
            being measured token by token.
    """

    def __init__(self, task: Task, texts: TextReader, chats: ChatReader, whole: bool):
        self.task, self.texts, self.chats, self.whole = task, texts, chats, whole

    def tokenized(self, item: Mapping[Any, Any], number: int) -> list[Feature]:
        """Those of a row with `chosen_ids` and `rejected_ids`, or `completion_ids`, and mostly `prompt_ids`, as TRL
        makes them."""
        names = [f"{side}_ids" for side in SIDES] if "chosen_ids" in item else ["completion_ids"]
        prompt = tokens_of(item.get("prompt_ids", []), "prompt_ids", number)
        completions = [tokens_of(item[name], name, number) for name in names]
        if self.whole:
            return [{"input_ids": prompt + tokens} for tokens in completions]
        return [{"input_ids": prompt + tokens, "labels": [-100] * len(prompt) + tokens} for tokens in completions]

    def pair(self, item: Mapping[Any, Any], number: int, options: dict[str, Any]) -> list[Feature]:
        """The chosen and the rejected side: texts or chats, with or without a prompt of their own."""
        if all(isinstance(item[side], str) for side in SIDES):
            text = text_of(item.get("prompt", ""), "prompt", number)
            return [self.closed(self.text(text, item[side], number)) for side in SIDES]
        prompt = messages_of(item["prompt"], "'prompt'", number) if "prompt" in item else []
        answers = [messages_of(item[side], f"'{side}'", number) for side in SIDES]
        if not prompt:  # of two whole chats, what they begin with
            first, second = answers
            shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
            shared = min(len(first), len(second)) if shared is None else shared
            prompt, answers = first[:shared], [first[shared:], second[shared:]]
        return [self.chat(prompt, answer, number, options) for answer in answers]

    def text(self, prompt: str, completion: str, number: int) -> Feature:
        """A prompt and a completion of it, measured on the completion."""
        if self.whole:
            return {"input_ids": self.texts.tokens(prompt + completion, number)}
        if prompt:
            return self.task.query_pair(self.texts, prompt, completion, number)
        tokens = self.texts.tokens(completion, number)
        return {"input_ids": tokens, "labels": list(tokens)}

    def closed(self, feature: Feature) -> Feature:
        """A feature of text with the token that ends a text behind it, as TRL trains on preferences."""
        end = getattr(self.texts.tokenizer, "eos_token_id", None)
        if end is None or feature["input_ids"][-1:] == [end]:
            return feature
        ended = ("input_ids", "labels") if "labels" in feature else ("input_ids",)
        return {**feature, **{name: [*feature[name], end] for name in ended}}

    def chat(self, prompt: list[Any], answer: list[Any], number: int, options: dict[str, Any]) -> Feature:
        """A prompt and its answer, chats both, measured on the answer."""
        if self.whole:
            return {"input_ids": self.chats.tokens([*prompt, *answer], number, **options)}
        return self.chats.answer(prompt, answer, number, **options)


def check_differs(features: list[Feature], number: int) -> None:
    """Raises [`~lorif_hf.errors.QueryError`] where both sides of a pair are the same."""
    if len(features) == 2 and features[0] == features[1]:
        raise QueryError(f"The two completions of query {number} are the same tokens: they do not differ in anything.")


def sign_of(label: Any, number: int) -> float:
    """1 for a completion that was to become likelier, -1 for one that was to become less likely, as KTO labels them.

    Raises:
        [`~lorif_hf.errors.QueryError`]: the label is neither `True` nor `False`.
    """
    value = label.item() if hasattr(label, "item") else label
    if value not in (True, False):
        raise QueryError(
            f"Query {number} has label {label!r} beside a completion: expected True (desirable) or False."
        )
    return 1.0 if value else -1.0
