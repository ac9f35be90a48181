"""Queries of a file that somebody uploads: .txt, .jsonl or .csv, of bounded size."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import QueryError


MOST_BYTES = 1 << 20
MOST_QUERIES = 200
_ASKED = ("prompt", "text", "query")
_ANSWERS = ("completion", "label")
_WAY_OUT = 'a column "prompt" (the model answers), "prompt" and "completion" (or "label"), or "text"'


@dataclass(frozen=True)
class FileQuery:
    """A query of a file.

    Args:
        prompt (`str`): what is asked, or the whole text.
        said (`str` or `None`): the answer that is to be attributed; `None`: the model's own, where it gives one.
        whole (`bool`): whether the prompt is a text that is attributed as it stands.
    """

    prompt: str
    said: str | None = None
    whole: bool = False


def read_query_file(path: Path) -> list[FileQuery]:
    """The queries of a file: each line of a .txt is a prompt; a line of a .jsonl is a prompt or an object, and a .csv
    has a header, with "prompt", "prompt" and "completion" (or "label"), or "text".

    Raises:
        [`~lorif_hf.errors.QueryError`]: the file is none of these, is too large or has too many queries; names it, and
        the line where one is wrong.
    """
    readers = {".txt": _lines, ".jsonl": _objects, ".csv": _records}
    name, reader = path.name, readers.get(path.suffix.lower())
    if reader is None:
        raise QueryError(f"{name} is no file of queries: expected one of {', '.join(readers)}.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise QueryError(
            f"{name} has {size:,} bytes, at most {MOST_BYTES:,} are read here: split it, or use `lorif-hf attribute`."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QueryError(f"{name} is no UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    queries = reader(name, text)
    if not queries:
        raise QueryError(f"{name} holds no query.")
    if len(queries) > MOST_QUERIES:
        raise QueryError(
            f"{name} holds {len(queries):,} queries, at most {MOST_QUERIES} are answered at once: split it, or use "
            "`lorif-hf attribute`."
        )
    return queries


def _lines(name: str, text: str) -> list[FileQuery]:
    return [FileQuery(line.removesuffix("\r")) for line in text.split("\n") if line.strip()]


def _objects(name: str, text: str) -> list[FileQuery]:
    queries = []
    for number, line in enumerate(text.split("\n"), start=1):  # JSON lets other line ends stand in a string
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QueryError(f"Line {number} of {name} is no JSON ({error}).") from None
        queries.append(FileQuery(value) if isinstance(value, str) else _query(value, f"Line {number} of {name}"))
    return queries


def _records(name: str, text: str) -> list[FileQuery]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    queries = []
    try:
        for record in reader:
            queries.append(_query(record, f"Line {reader.line_num} of {name}"))
    except csv.Error as error:
        raise QueryError(f"Line {reader.line_num + 1} of {name} is no CSV ({error}).") from None
    return queries


def _query(record: Any, place: str) -> FileQuery:
    if not isinstance(record, dict):
        raise QueryError(f"{place} is a {type(record).__name__}: expected a text, or an object with {_WAY_OUT}.")
    given = {key: value for key, value in record.items() if value not in (None, "")}
    said = next((given[key] for key in _ANSWERS if key in given), None)
    key = next((name for name in _ASKED if name in given), None)
    if key is None:
        known = ", ".join(f'"{name}"' for name in record if isinstance(name, str)) or "nothing"
        raise QueryError(f"{place} holds {known}: expected {_WAY_OUT}.")
    if not isinstance(given[key], str) or not isinstance(said, (str, type(None))):
        raise QueryError(f"{place} holds something else than texts: expected {_WAY_OUT}.")
    return FileQuery(given[key], said, whole=key != "prompt" and said is None)
