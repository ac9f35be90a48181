"""`Attribution`: what a query returns, ranked rows joined to their examples."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor


if TYPE_CHECKING:
    import datasets
    import pandas as pd


_TEMPLATES = Environment(loader=PackageLoader("lorif_hf.reports"), autoescape=True, undefined=StrictUndefined)


@dataclass(eq=False, repr=False)
class Attribution:
    """The top examples of one or more queries.

    `attribution[q]` is that of query q alone, iterating goes through the queries. In a notebook it shows itself as a
    table.

    Args:
        scores (`Tensor`): (Q, k), best first. Nats per unit of example weight; positive: a proponent.
        indices (`Tensor`): int64 (Q, k), rows of the training set.
        examples (`Mapping[int, dict]`): the examples of these rows.
        queries (`Sequence[str]`): the queries as text.
        losses (`Sequence[float]`): the queries' losses, nats.
        repo_id, commit (`str` or `None`): the Hub repo and the commit that answered, where the index is from the Hub.
    """

    scores: Tensor
    indices: Tensor
    examples: Mapping[int, dict[str, Any]]
    queries: Sequence[str]
    losses: Sequence[float]
    repo_id: str | None = None
    commit: str | None = None
    measure: str = "loss"
    tokens: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, query: int | slice) -> "Attribution":
        if isinstance(query, int):
            query = range(len(self))[query]
            query = slice(query, query + 1)
        taken = {name: getattr(self, name)[query] for name in ("scores", "indices", "queries", "losses")}
        return replace(self, **taken)

    def __iter__(self) -> Iterator["Attribution"]:
        return (self[query] for query in range(len(self)))

    def __repr__(self) -> str:
        return f"Attribution(queries={len(self)}, top_k={self.scores.shape[1]})"

    def to_list(self) -> list[dict[str, Any]]:
        """One dict per query and rank: query, rank (from 1), score, and the columns of the example."""
        return [
            {"query": query, "rank": rank + 1, "score": float(score), **self.examples[int(row)]}
            for query, (scores, rows) in enumerate(zip(self.scores, self.indices, strict=True))
            for rank, (score, row) in enumerate(zip(scores, rows, strict=True))
        ]

    def to_dataset(self) -> "datasets.Dataset":
        """[`~Attribution.to_list`] as a `datasets.Dataset`."""
        import datasets

        return datasets.Dataset.from_list(self.to_list())

    def to_pandas(self) -> "pd.DataFrame":
        """[`~Attribution.to_list`] as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame(self.to_list())

    def plot(self) -> Any:
        """Bars of the scores, one panel per query. Returns the `matplotlib.figure.Figure`; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('plot() needs matplotlib: pip install "lorif-hf[plot]".') from error

        count, k = self.scores.shape
        figure = Figure(figsize=(9, (0.35 * k + 1.1) * count), layout="constrained")
        panels = figure.subplots(count, 1, squeeze=False)[:, 0]
        for panel, query, scores, rows in zip(panels, self.queries, self.scores, self.indices, strict=True):
            labels = [f"{int(row)}: {shorten(self.examples[int(row)]['text'], 60)}" for row in rows]
            colours = ["#2a7f62" if score >= 0 else "#b5403a" for score in scores.tolist()]
            panel.barh(range(len(labels)), scores.tolist(), color=colours)
            panel.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
            panel.invert_yaxis()
            panel.axvline(0, color="0.4", linewidth=0.8)
            panel.set_xlabel("score (nats per unit of example weight)")
            panel.set_title(shorten(query, 90), fontsize=9, loc="left", parse_math=False)
        return figure

    def _repr_html_(self) -> str:
        return self._render("attribution.html")

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that stands alone: no scripts, nothing loaded from elsewhere, every text escaped."""
        Path(path).write_text(self._render("page.html"), encoding="utf-8")

    def _render(self, template: str) -> str:
        """A page, or a part of one: per query its text, loss and rows with a bar of at most 100 percent."""
        panels = []
        for query, loss, only in zip(self.queries, self.losses, self, strict=True):
            rows = only.to_list()
            largest = max((abs(row["score"]) for row in rows), default=0) or 1.0
            for row in rows:
                row["bar"] = round(100 * abs(row["score"]) / largest, 1)
            panels.append({"query": query, "loss": loss, "rows": rows})
        source = f"{self.repo_id} at {self.commit}" if self.repo_id else None
        return _TEMPLATES.get_template(template).render(panels=panels, source=source)


def shorten(text: str | None, length: int) -> str:
    """One line of at most `length` characters, all of them printable: nothing that a terminal would act on."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
    return line if len(line) <= length else line[: length - 1] + "…"
