"""What a user wrote under a name, checked: a value of another type is an error that names the query."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..errors import QueryError
from .chat import is_chat, problem


def shown(keys: Iterable[Any]) -> str:
    """Names in quotes, for an error."""
    return ", ".join(f"'{key}'" for key in keys)


def text_of(value: Any, key: str, number: int) -> str:
    """A string under a key, or a [`~lorif_hf.errors.QueryError`]."""
    if not isinstance(value, str):
        raise QueryError(f"Query {number} has '{key}' of type {type(value).__name__}: expected a string.")
    return value


def label_of(value: Any, number: int) -> Any:
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


def tokens_of(value: Any, key: str, number: int) -> list[int]:
    """Token ids under a key, as one list."""
    try:
        values = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = torch.zeros(())
    whole = not values.is_floating_point() or not values.numel()
    if values.dim() != 1 or not whole or values.dtype == torch.bool:
        raise QueryError(
            f"Query {number} has '{key}' of type {type(value).__name__}: expected a list of token ids, one row."
        )
    tokens: list[int] = values.long().tolist()
    return tokens


def messages_of(value: Any, what: str, number: int) -> list[Any]:
    """The messages of a chat."""
    if is_chat(value):
        return list(value)
    if not isinstance(value, (list, tuple)) or not value:
        kind = "empty" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
        raise QueryError(
            f"In query {number}, {what} is {kind}: expected a list of messages, each with role and content."
        )
    place, lacks = next((i, lacks) for i, lacks in enumerate(map(problem, value)) if lacks)
    raise QueryError(f"In query {number}, message {place} of {what} {lacks}: expected a dict with role and content.")


def template_options(item: Mapping[str, Any], number: int) -> dict[str, Any]:
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


_HOW = (
    "A prompt with its completion is a tuple, ('The capital of France is', ' Paris'), or {'prompt': ..., "
    "'completion': ...}; two queries are [{'text': ...}, {'text': ...}]."
)


def check_no_split_pair(query: Any) -> None:
    """Raises [`~lorif_hf.errors.QueryError`] where a list of two strings is one text cut in two: its second begins
    with a space. A list is several queries, here as everywhere, and two results would be measured of what is one."""
    if not isinstance(query, list) or len(query) != 2 or not all(isinstance(text, str) for text in query):
        return
    if query[1][:1].isspace() and query[1].strip():
        raise QueryError(f"The query is a list of two strings, the second of which goes on with a space. {_HOW}")


def check_no_listed_pair(item: Any, number: int) -> None:
    """Raises [`~lorif_hf.errors.QueryError`] where a pair inside a list of queries is a list, as JSON has it."""
    if isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
        raise QueryError(f"Query {number} is a list of two strings. {_HOW}")
