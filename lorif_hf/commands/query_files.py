"""Queries from files and from the standard input."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import QueryError


_KINDS = "a .txt file with a query on each line, a .jsonl file with a JSON value on each, or a .json list of them"
_FORM = (
    'a text, {"query": ...}, {"prompt": ..., "completion": ...}, {"messages": [...]}, a list of a prompt and its '
    "completion (or of a text and its label), or what else `InfluenceIndex.attribute` takes"
)


def read_query_file(path: Path) -> list[Any]:
    """Queries from a file: .txt holds one text a line, .jsonl one JSON value a line, .json a list of them. Empty
    lines count for nothing.

    A JSON value is a text, an object with "query" (a text), "prompt" and "completion", "messages", "text" or
    "input_ids", a list of two texts (prompt and completion) or of a text and a label, or a list of chat messages.

    Args:
        path (`Path`): UTF-8, with a byte order mark or without.

    Raises:
        [`~lorif_hf.errors.QueryError`]: names the file and the line.
    """
    if path.suffix.lower() not in (".txt", ".jsonl", ".json"):
        raise QueryError(f"{path} cannot be read as queries: expected {_KINDS}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QueryError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    if path.suffix.lower() == ".json":
        values = _parsed(text, str(path))
        read: Iterable[tuple[str, Any]] = (
            (f"{path}, item {number}", value)
            for number, value in enumerate(values if isinstance(values, list) else [values])
        )
    else:
        lines = [(f"{path}, line {number}", line) for number, line in _lines(text)]
        as_text = path.suffix.lower() == ".txt"
        read = lines if as_text else ((place, _parsed(line, place)) for place, line in lines)
    queries = [_query(value, place) for place, value in read]
    if not queries:
        raise QueryError(f"{path} holds no query: expected {_KINDS}.")
    return queries


def read_standard_input() -> list[Any]:
    """Queries from the standard input, one text a line.

    Raises:
        [`~lorif_hf.errors.QueryError`]: there is none.
    """
    content = sys.stdin.buffer.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QueryError(f"The standard input is not UTF-8 (byte {error.start}).") from None
    queries = [line for _, line in _lines(text)]
    if not queries:
        raise QueryError("The standard input holds no query: expected a text on each line.")
    return queries


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines that hold anything, and their numbers from 1. Only a line break breaks them: JSON and texts may hold
    other characters that `str.splitlines` breaks at."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{place} is not JSON ({error}): expected {_FORM}.") from None


def _query(value: Any, place: str) -> Any:
    """A JSON value as `InfluenceIndex.attribute` takes it."""
    if isinstance(value, dict) and "query" in value:
        if not isinstance(value["query"], str):
            raise QueryError(f'{place}: "query" must be a text, got {type(value["query"]).__name__}.')
        return value["query"]
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return tuple(value)
    if not isinstance(value, (str, dict, list)):
        raise QueryError(f"{place} is {json.dumps(value)}: expected {_FORM}.")
    return value
