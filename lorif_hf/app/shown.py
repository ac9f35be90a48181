"""Answers and rows as HTML. Every text is from somebody: escaped, and what is invisible in it made visible."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..reports.attribution import Attribution
from ..reports.passages import markup
from .answers import Answer


if TYPE_CHECKING:
    from .questions import Questions


_FIGURES = ("num_tokens", "loss", "self_influence")
_NAMED = {"rank", "row", "example_id", "text", *_FIGURES}
_PREVIEW = 160  # characters
_LONGEST = 1_000_000  # bytes of HTML for a row in full
_IN_LIST = 20_000  # and in a list of rows

_TEMPLATES = Environment(
    loader=PackageLoader("lorif_hf.app", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["shown"] = lambda text: markup([(str(text), "")])[0]


def about_html(questions: "Questions") -> str:
    """What the app is about: its index and model."""
    index, manifest = questions.index, questions.index.manifest
    model = manifest.model.get("name") or manifest.model.get("model_class")
    return _render(
        "about.html",
        index=index.repo_id or index.path.name,
        commit=index.commit,
        model=model,
        count=len(index),
        layers=len(manifest.modules),
        lds=index.lds,
    )


def answer_html(answer: Answer | None) -> str:
    """What the model says; nothing where it was not asked."""
    return "" if answer is None else _render("answer.html", answer=answer)


def ranking_html(result: Attribution) -> str:
    """The rows behind one or more queries."""
    return result._repr_html_()


def groups_html(groups: Any) -> str:
    """Sums of influence by a column."""
    return str(groups._repr_html_())


def row_html(example: Mapping[str, Any]) -> str:
    """A row in full."""
    return _render("row.html", row=_row(example, _LONGEST))


def suspects_html(rows: Sequence[Mapping[str, Any]], count: int) -> str:
    """Rows by their self-influence; `count` is of all rows."""
    return _render("suspects.html", rows=[_row(row, _IN_LIST) for row in rows], count=count)


def _row(example: Mapping[str, Any], most_bytes: int) -> dict[str, Any]:
    text = example.get("text") or ""
    whole, length = markup([(text, "")], most_bytes)
    line = " ".join(text[: 4 * _PREVIEW].split())
    return {
        "rank": example.get("rank"),
        "number": example["row"],
        "example_id": example.get("example_id"),
        "figures": {name: example[name] for name in _FIGURES if example.get(name) is not None},
        "columns": {name: value for name, value in example.items() if name not in _NAMED and value is not None},
        "preview": markup([(line[:_PREVIEW] + ("…" if len(line) > _PREVIEW else ""), "")])[0],
        "whole": whole,
        "left_out": len(text) - length,
    }


def _render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(values)
