"""An `Attribution` as rows: for programs, for spreadsheets, for the eye in a terminal."""

import csv
import json
import math
import os
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .distribution import ScoreDistribution
from .rankings import Ranking, rankings


if TYPE_CHECKING:
    from .attribution import Attribution


_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one
_MOST_QUERIES, _MOST_ROWS = 10, 10  # that a terminal is shown
_LEAST_TEXT = 12  # columns of a terminal for the text of a row
_UNIT = "nats per unit of example weight"


def records(result: "Attribution") -> list[dict[str, Any]]:
    """One dict a query (or token) and row that is shown: what people read first, then the rest."""
    rows = []
    for query in range(len(result)):
        for ranking in rankings(result, query):
            rows += [_record(result, ranking, place) for place in range(len(ranking.rows))]
    return rows


def columns(result: "Attribution") -> list[str]:
    """The names in [`records`], in order, also where there is none."""
    named = {name: None for record in records(result) for name in record}
    return list(named) or ["query", "rank", "score", "text", "row", "query_id"]


def write_csv(result: "Attribution", path: str | os.PathLike[str]) -> None:
    """The records as a table in UTF-8, with a header."""
    names = columns(result)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_cell(name) for name in names])
        for record in records(result):
            writer.writerow([_cell(record.get(name)) for name in names])


def write_json(result: "Attribution", path: str | os.PathLike[str]) -> None:
    """The whole result, query by query. ASCII alone: no character of a text acts on whoever looks at it."""
    with open(path, "w", encoding="ascii") as file:
        json.dump(finite(as_json(result)), file, indent=1, allow_nan=False)
        file.write("\n")


def as_json(result: "Attribution") -> dict[str, Any]:
    """The whole result as what JSON holds, but for numbers that are NaN."""
    return {
        "measure": result.measure,
        "unit": _UNIT,
        "provenance": asdict(result.provenance),
        "layers": None if result.layers is None else list(result.layers),
        "queries": [_query(result, query) for query in range(len(result))],
    }


def finite(value: Any) -> Any:
    """A tree of lists and dicts with `None` in place of NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(result: "Attribution", width: int | None = None) -> str:
    """A table for each query, as wide as the terminal: nothing in it that a terminal would act on.

    Args:
        result (`Attribution`): what is shown: its first queries, and the first rows of each.
        width (`int`, *optional*): columns of the terminal; by default asked for, 100 where nobody knows.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    tokens = "" if result.tokens is None else f", {sum(map(len, result.tokens))} tokens"
    count = f"{len(result)} {'query' if len(result) == 1 else 'queries'}"
    lines = [cut_to_width(f"Attribution of {count}{tokens} ({_UNIT})", width)]
    for query in range(min(len(result), _MOST_QUERIES)):
        value = result.losses[query] if result.measure == "loss" else -result.losses[query]
        head = f"[{query}] {result.measure} {value:.3f}: "
        lines += ["", head + cut_to_width(result.queries[query], max(_LEAST_TEXT, width - len(head)))]
        for ranking in rankings(result, query):
            lines += _table(result, ranking, width)
    if len(result) > _MOST_QUERIES:
        lines += ["", f"... and {len(result) - _MOST_QUERIES} more queries: to_pandas() has all."]
    return "\n".join(lines)


def one_line(text: str | None) -> str:
    """A text as one line, without any character that a terminal, or a reader of both directions, would act on."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def cut_to_width(text: str | None, width: int) -> str:
    """One line that takes at most so many columns of a terminal, East Asian characters two."""
    line, taken = one_line(text), 0
    for place, character in enumerate(line):
        taken += _columns_of(character)
        if taken > width:
            end, used = place, taken - _columns_of(character)
            while end and used > width - 1:
                end -= 1
                used -= _columns_of(line[end])
            return line[:end] + "…"
    return line


def _columns_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _table(result: "Attribution", ranking: Ranking, width: int) -> Iterator[str]:
    if ranking.token is not None:
        yield "  " + cut_to_width(f"{ranking.place}: {ranking.token!r}", width - 2)
    best = len(ranking.rows) - ranking.opponents
    places = [*range(min(best, _MOST_ROWS)), *range(best, best + min(ranking.opponents, _MOST_ROWS))]
    spread = ranking.distribution is not None
    cells = [
        (
            f"{ranking.rank(place):,}",
            f"{ranking.scores[place]:+.4g}",
            *([f"{ranking.z(place) or 0:+.1f}"] if spread else []),
            str(ranking.rows[place]),
            _folded(result, ranking.rows[place]),
        )
        for place in places
    ]
    names = ("rank", "score", *(["z"] if spread else []), "row", "text")
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names[:-1])] if cells else []
    room = max(_LEAST_TEXT, width - sum(size + 2 for size in widths))
    for row in [names, *cells] if cells else []:
        start = "".join(f"{cell:>{size}}  " for cell, size in zip(row, widths, strict=False))
        yield start + cut_to_width(row[-1], room)
    if best > _MOST_ROWS:
        yield f"... and {best - _MOST_ROWS} more of the best"


def _folded(result: "Attribution", row: int) -> str:
    copies = len(result.copies.get(row, ()))
    counted = f"(+{copies} like it) " if copies else ""
    return counted + one_line(result.examples[row].get("text") or result.examples[row].get("example_id") or "")


def _record(result: "Attribution", ranking: Ranking, place: int) -> dict[str, Any]:
    row = ranking.rows[place]
    example = dict(result.examples[row])
    token = {} if ranking.token is None else {"token_text": ranking.token}
    number = {} if ranking.token is None else {"token": ranking.place}
    spread = {} if ranking.distribution is None else {"z": ranking.z(place)}
    copies = {"copies": list(result.copies.get(row, ()))} if result.copies else {}
    return {
        "query": result.queries[ranking.query],
        **token,
        "rank": ranking.rank(place),
        "score": ranking.scores[place],
        **spread,
        "text": example.pop("text", None),
        **example,
        **copies,
        "query_id": ranking.query,
        **number,
    }


def _query(result: "Attribution", query: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "query": result.queries[query],
        "prompt_characters": None if result.prompts is None else result.prompts[query],
        result.measure: result.losses[query] if result.measure == "loss" else -result.losses[query],
    }
    ranked = [_ranked(result, ranking) for ranking in rankings(result, query)]
    return {**shown, **ranked[0]} if result.tokens is None else {**shown, "tokens": ranked}


def _ranked(result: "Attribution", ranking: Ranking) -> dict[str, Any]:
    rows = [_row(result, ranking, place) for place in range(len(ranking.rows))]
    best = len(rows) - ranking.opponents
    spread = ranking.distribution
    token = {} if ranking.token is None else {"token": ranking.token}
    return {
        **token,
        "distribution": asdict(spread) if isinstance(spread, ScoreDistribution) else None,
        "rows": rows[:best],
        "opponents": rows[best:],
    }


def _row(result: "Attribution", ranking: Ranking, place: int) -> dict[str, Any]:
    row, pair = ranking.rows[place], (ranking.query, ranking.rows[place])
    record = _record(result, ranking, place)
    shown = {name: value for name, value in record.items() if name not in ("query", "query_id", "token", "token_text")}
    if result.layer_scores is not None and pair in result.layer_scores:
        shown["layer_scores"] = list(result.layer_scores[pair])
    shading = result.shading
    if shading is not None and pair in shading.row_shares:
        shown["tokens"] = _zipped(shading.row_tokens[row], shading.row_shares[pair])
    if shading is not None and pair in shading.query_shares:
        shown["query_tokens"] = _zipped(shading.query_tokens[ranking.query], shading.query_shares[pair])
    return shown


def _zipped(tokens: Sequence[str], shares: Sequence[float]) -> list[list[Any]]:
    return [[token, share] for token, share in zip(tokens, shares, strict=True)]


def _cell(value: Any) -> Any:
    """A value as a spreadsheet may open it: no text is taken for a formula, and none holds what acts on a reader."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in value)
    return f"'{text}" if text.startswith(_FORMULA) else text
