"""An `Attribution` as HTML: the page that `save_html` writes, and what a notebook shows. Every text is escaped."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from .drawings import chance_maximum, histogram, layer_strip
from .heat_maps import shown_map
from .passages import Passage, Runs, markup, passage, shaded
from .rankings import Ranking, rankings
from .templating import TEMPLATES, cut, line


if TYPE_CHECKING:
    from .attribution import Attribution


# What was measured; what training more on a proponent does, and on an opponent.
_MEASURES = {
    "loss": ("loss", "lowers the query's loss", "raises it"),
    "log_prob": ("log-probability", "raises the query's log-probability", "lowers it"),
    "margin": ("margin", "raises the query's margin", "lowers it"),
    "difference": (
        "log-probability or reward of the chosen less that of the rejected completion",
        "raises the chosen completion against the rejected",
        "lowers it",
    ),
    "reward": ("reward", "raises the query's reward", "lowers it"),
}

_KNOWN_COLUMNS = {"row", "example_id", "text", "num_tokens", "loss", "self_influence"}
_KNOWN_COLUMNS |= {"source_row", "start", "stop", "document", "pieces"}
_ROW_BYTES = 500_000  # of HTML, that the texts of all rows of a page share
_FEWEST, _MOST = 500, 20_000  # of these for one row
_QUERY_BYTES = 8_000  # for the text of a query
_MOST_COLUMNS = 8  # of the owner's, of each row
_MOST_MAPS = 3  # of columns whose values are worth one: few, and shared by rows
_MOST_GROUPS = 12
_IN_NOTEBOOK = 20  # queries; a notebook keeps all that it shows
_SHADED_ANSWER = 40  # tokens of an answer that each row repeats, shaded
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def save_page(result: "Attribution", path: str | os.PathLike[str]) -> None:
    """Write the page of a result: it stands alone, runs no script and loads nothing."""
    html = TEMPLATES.get_template("page.html").render(_shown(result), alone=True, hidden=0)
    Path(path).write_text(html, encoding="utf-8")


def in_notebook(result: "Attribution") -> str:
    """The first queries of a result, for the output of a notebook's cell."""
    shown = result[:_IN_NOTEBOOK] if len(result) > _IN_NOTEBOOK else result
    hidden = len(result) - len(shown)
    return TEMPLATES.get_template("attribution.html").render(_shown(shown), alone=False, hidden=hidden)


def _shown(result: "Attribution") -> dict[str, Any]:
    """What the templates show."""
    ranked = [list(rankings(result, query)) for query in range(len(result))]
    rows = sum(len(ranking.rows) for of_query in ranked for ranking in of_query)
    most_bytes = min(max(_ROW_BYTES // max(rows, 1), _FEWEST), _MOST)
    panels = [
        {
            "number": query + 1,
            "text": result.queries[query],
            "asked": _asked(result, query),
            "value": result.losses[query] if result.measure == "loss" else -result.losses[query],
            "tables": [_table(result, ranking, most_bytes) for ranking in of_query],
        }
        for query, of_query in enumerate(ranked)
    ]
    other = (result.measure, f"raises the query's {result.measure}", "lowers it")
    measured, effect, opposite = _MEASURES.get(result.measure, other)
    return {
        "panels": panels,
        "measured": measured,
        "unit": "" if result.measure == "reward" else " nats",
        "effects": {"proponents": effect, "opponents": opposite},
        "groups": _groups(result),
        "provenance": result.provenance,
        "repo": _repo(result),
        "explained": {
            "prompts": any(result.prompts or ()),
            "distribution": bool(result.distribution),
            "copies": bool(result.copies),
            "layers": bool(result.layer_scores),
            "shading": result.shading is not None,
        },
    }


def _table(result: "Attribution", ranking: Ranking, most_bytes: int) -> dict[str, Any]:
    """The rows of a ranking in one part or two, and where they stand among all."""
    largest = max(map(abs, ranking.scores), default=0) or 1.0
    rows = [_row(result, ranking, place, largest, most_bytes) for place in range(len(ranking.rows))]
    first = len(rows) - ranking.opponents
    best = ranking.scores[:first]
    lowest_first = bool(best) and best[0] < 0  # of `largest=False`
    parts = [("opponents" if lowest_first else "proponents", rows[:first]), ("opponents", rows[first:])]
    return {
        "token": None if ranking.token is None else markup([(ranking.token, "")])[0],
        "first": rows[0] if rows else None,
        "parts": [(side, part) for side, part in parts if part],
        "spread": _spread(ranking),
    }


def _spread(ranking: Ranking) -> dict[str, Any] | None:
    """Is rank 1 special? The scores of all rows, and where those that are shown stand."""
    spread = ranking.distribution
    z = ranking.z(0) if ranking.rows else None
    if spread is None or z is None:
        return None
    return {
        "drawing": histogram(spread, ranking.scores),
        "low": spread.edges[0],
        "high": spread.edges[-1],
        "count": spread.count,
        "first": z,
        "chance": chance_maximum(spread.count),
    }


def _row(result: "Attribution", ranking: Ranking, place: int, largest: float, most_bytes: int) -> dict[str, Any]:
    row, score, repo = ranking.rows[place], ranking.scores[place], _repo(result)
    return {
        "rank": f"{ranking.rank(place):,}",
        "score": score,
        "bar": round(100 * abs(score) / largest, 1),
        "z": ranking.z(place),
        "row": row,
        "example": result.examples[row],
        "passage": _text_of(result, ranking, row, most_bytes),
        "answer": _answer(result, ranking, row),
        "copies": list(result.copies.get(row, ())),
        "columns": _columns(result.examples[row]),
        "layers": _layers(result, ranking, row),
        "url": repo and f"{repo}/viewer/default/train?row={row}",
    }


def _text_of(result: "Attribution", ranking: Ranking, row: int, most_bytes: int) -> Passage:
    """The text of a row, shaded where its tokens have shares."""
    runs: Runs = [(result.examples[row].get("text") or "", "")]
    shares = result.shading and ranking.token is None and result.shading.row_shares.get((ranking.query, row))
    if result.shading and shares:
        runs = shaded(result.shading.row_tokens[row], shares)
    return passage(runs, most_bytes)


def _answer(result: "Attribution", ranking: Ranking, row: int) -> Markup | None:
    """The tokens of the answer by what they add to the score of a row: which of them does the row explain?"""
    shares = result.shading and ranking.token is None and result.shading.query_shares.get((ranking.query, row))
    if not result.shading or not shares or not 1 < len(shares) <= _SHADED_ANSWER:
        return None
    return markup(shaded(result.shading.query_tokens[ranking.query], shares), _QUERY_BYTES // 4)[0]


def _asked(result: "Attribution", query: int) -> Passage:
    """The text of a query: its prompt and its completion apart."""
    text, prompt = result.queries[query], (result.prompts[query] if result.prompts is not None else None)
    if not prompt:
        return passage([(text, "")], _QUERY_BYTES)
    answer = text[prompt:].lstrip()  # a space before it is part of its first token, but not to be underlined
    asked = text[: len(text) - len(answer)]
    tail = asked if len(asked) <= 240 else "…" + asked[-240:]
    preview = [(tail, "lf-prompt"), (answer[:240], "lf-completion")]
    return passage([(asked, "lf-prompt"), (answer, "lf-completion")], _QUERY_BYTES, preview)


def _columns(example: Mapping[str, Any]) -> list[tuple[Markup, Markup]]:
    """The owner's columns of a row."""
    names = [name for name in example if name not in _KNOWN_COLUMNS and example[name] is not None]
    values = [f"{value:.4g}" if isinstance(value := example[name], float) else value for name in names]
    return [(line(name, 30), line(value)) for name, value in zip(names, values, strict=True)][:_MOST_COLUMNS]


def _layers(result: "Attribution", ranking: Ranking, row: int) -> dict[str, Any] | None:
    """A bar for each layer, and the names of the three that count most, with their part of all, signs aside."""
    scores = (result.layer_scores or {}).get((ranking.query, row))
    if not scores or result.layers is None or ranking.token is not None:
        return None
    total = sum(map(abs, scores)) or 1.0
    most = sorted(range(len(scores)), key=lambda place: -abs(scores[place]))[:3]
    names = [(cut(result.layers[place], 80), scores[place], abs(scores[place]) / total) for place in most]
    return {"strip": layer_strip(scores), "most": names}


def _groups(result: "Attribution") -> list[dict[str, Any]]:
    """Influence by the owner's columns that have few values: sums over the rows that are shown."""
    examples = list(result.examples.values())
    names = dict.fromkeys(name for example in examples for name in example if name not in _KNOWN_COLUMNS)
    maps = []
    for name in names:
        values = {value for example in examples if not isinstance(value := example.get(name), float)}
        if 1 < len(values - {None}) <= min(_MOST_GROUPS, len(examples) // 2):
            groups = result.by(name)
            maps.append(shown_map(groups.column, groups.groups, groups.queries, groups.sums.tolist()))
    return maps[:_MOST_MAPS]


def _repo(result: "Attribution") -> str | None:
    """The address of the index on the Hub; what else calls itself a repo gets no link."""
    repo_id = result.provenance.repo_id
    return f"https://huggingface.co/datasets/{repo_id}" if repo_id and _REPO.fullmatch(repo_id) else None
