"""`Attribution`: what a query returns, ranked rows joined to their examples."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from ..errors import QueryError
from .distribution import ScoreDistribution
from .groups import GroupInfluence, shown_influence
from .provenance import Provenance
from .saving import load, save
from .shading import Shading, of_queries
from .tables import as_text, records, write_csv, write_json
from .tables import columns as columns_of


if TYPE_CHECKING:
    import datasets
    import pandas as pd


# What was measured, as the page names it, and what training more on a proponent does to it.
_MEASURES = {
    "loss": ("loss", "lowers the query's loss"),
    "log_prob": ("log-probability", "raises the query's log-probability"),
    "margin": ("margin", "raises the query's margin"),
    "difference": (
        "log-probability or reward of the chosen less that of the rejected completion",
        "raises the chosen completion against the rejected one",
    ),
    "reward": ("reward", "raises the query's reward"),
}

_TEMPLATES = Environment(loader=PackageLoader("lorif_hf.reports"), autoescape=True, undefined=StrictUndefined)


@dataclass(eq=False, repr=False)
class Attribution:
    """The top examples of one or more queries, or of each token of their answers.

    `attribution[q]` is that of query q alone, iterating goes through the queries. In a notebook it shows itself as a
    table.

    Args:
        scores (`Tensor`): (Q, k), best first; with tokens (Q, T, k), NaN beyond a query's last. Nats per unit of
            example weight; positive: a proponent.
        indices (`Tensor`): int64 of the same shape, rows of the training set; -1 beyond a query's last token.
        examples (`Mapping[int, dict]`): the examples of these rows.
        queries (`Sequence[str]`): the queries as text.
        losses (`Sequence[float]`): the queries' losses, nats; of another `measure`, what is lowered like a loss, its
            negative.
        measure (`str`): what was measured of the queries, one of [`~lorif_hf.tasks.measures.MEASURES`].
        tokens (`Sequence[Sequence[str]]` or `None`): per query, the tokens of its answer where each has rows.
        opponent_scores, opponent_indices (`Tensor` or `None`): (Q, k2) the lowest scores and their rows, lowest first,
            where they were asked for; shaped and filled like `scores` and `indices`. No row is on both
            sides.
        copies (`Mapping[int, Sequence[int]]`): where near-duplicates were folded: by row that is shown, the rows that
            say nearly the same and were ranked behind it.
        layers (`Sequence[str]` or `None`): the scored layers, where each has scores of its own.
        layer_scores (`Mapping[tuple[int, int], Sequence[float]]` or `None`): by query and row that is shown, the score
            of each of `layers`; they add up to the row's score.
        shading (`Shading` or `None`): what single tokens of query and rows add to the scores, where asked.
        distribution (`Sequence` of `ScoreDistribution`, or `None`): per query, the scores of all rows that were
            ranked; with tokens, per query a list of one for each of its tokens.
        prompts (`Sequence[int | None]` or `None`): per query, how many characters of its text are the prompt; `None`
            for one that is measured whole.
        provenance (`Provenance`): which index of which model answered, and when.
    """

    scores: Tensor
    indices: Tensor
    examples: Mapping[int, dict[str, Any]]
    queries: Sequence[str]
    losses: Sequence[float]
    measure: str = "loss"
    tokens: Sequence[Sequence[str]] | None = None
    opponent_scores: Tensor | None = None
    opponent_indices: Tensor | None = None
    copies: Mapping[int, Sequence[int]] = field(default_factory=dict)
    layers: Sequence[str] | None = None
    layer_scores: Mapping[tuple[int, int], Sequence[float]] | None = None
    shading: Shading | None = None
    distribution: Sequence[ScoreDistribution | Sequence[ScoreDistribution]] | None = None
    prompts: Sequence[int | None] | None = None
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def repo_id(self) -> str | None:
        """The Hub repo of the index, where it is from the Hub."""
        return self.provenance.repo_id

    @property
    def commit(self) -> str | None:
        """The commit of that repo that answered."""
        return self.provenance.commit

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, query: int | slice) -> "Attribution":
        """That of one query, or of those of a slice; negative numbers count from the end."""
        if isinstance(query, slice):
            queries = list(range(len(self))[query])
        elif isinstance(query, bool) or not hasattr(query, "__index__"):
            raise TypeError(f"result[...] takes the number of a query or a slice, got {query!r}.")
        else:
            queries = [range(len(self))[query]]
        return self._of(queries)

    def __iter__(self) -> Iterator["Attribution"]:
        return (self[query] for query in range(len(self)))

    def __repr__(self) -> str:
        return as_text(self)

    def _of(self, queries: Sequence[int]) -> "Attribution":
        """That of some queries, in this order."""
        tensors = ("scores", "indices", "opponent_scores", "opponent_indices")
        kept: dict[str, Any] = {name: held[queries] for name in tensors if (held := getattr(self, name)) is not None}
        for name in ("queries", "losses", "tokens", "distribution", "prompts"):
            if (held := getattr(self, name)) is not None:
                kept[name] = [held[query] for query in queries]
        sides = [held for name in ("indices", "opponent_indices") if (held := kept.get(name)) is not None]
        rows = {row for side in sides for row in side.flatten().tolist()}
        kept["examples"] = {row: example for row, example in self.examples.items() if row in rows}
        kept["copies"] = {row: copies for row, copies in self.copies.items() if row in rows}
        if self.layer_scores is not None:
            kept["layer_scores"] = of_queries(self.layer_scores, queries)
        if self.shading is not None:
            kept["shading"] = self.shading.of(queries, rows)
        return replace(self, **kept)

    @property
    def standing(self) -> list[dict[str, Any]]:
        """Where each row that is shown stands among all: is the first one special?

        Returns:
            `list[dict]`: query_id, row, score, rank (from 1 of the highest score) of how many (`count`), and z: how
            many standard deviations its score is above the mean of all rows (`None` where all scores are equal). Of a
            normal distribution, the largest of a thousand is expected at 3.2.

        Example:

        ```python
        max(standing["z"] for standing in index.attribute(model, query).standing)
        ```
        """
        if self.distribution is None:
            return []
        names = ("query_id", "token", "row", "score", "rank", "z")
        return [
            {name: record[name] for name in names if name in record} | {"count": self._count(record)}
            for record in records(self)
        ]

    def folded(self) -> "Attribution":
        """The same with near-duplicates folded into the best of them: fewer rows, each with its `copies`.

        Rows that are not shown do not take their place: [`~InfluenceIndex.attribute`] with `fold_duplicates=True` asks
        for as many distinct rows as `top_k`.
        """
        from .folding import folded

        return folded(self)

    def by(self, column: str) -> GroupInfluence:
        """The influence of groups of the rows that are shown: sums over all with the same value in a column. Of all
        rows of an index, [`~InfluenceIndex.influence_by`].

        Args:
            column (`str`): of the examples, as "source".

        Raises:
            [`~lorif_hf.errors.QueryError`]: the examples have no such column.

        Example:

        ```python
        index.attribute(model, queries, top_k=100).by("source").to_pandas()
        ```
        """
        names = dict.fromkeys(name for example in self.examples.values() for name in example)
        if column not in names and self.examples:
            raise QueryError(f"The examples have no column {column!r}: there are {', '.join(map(repr, names))}.")
        pairs = [(record["query_id"], record["score"], record[column]) for record in records(self)]
        return shown_influence(self.queries, pairs, column)

    def to_list(self) -> list[dict[str, Any]]:
        """One dict per query and row that is shown: query (its text), rank (from 1 of the highest score; an opponent's
        is its place among all rows), score, z, text, the other columns of the example, query_id (from 0). With tokens
        one for each of them, and with its text as "token_text" and its place in the answer (from 0) as "token"; where
        near-duplicates were folded, "copies" has their rows."""
        return records(self)

    def to_dataset(self) -> "datasets.Dataset":
        """[`~Attribution.to_list`] as a `datasets.Dataset`."""
        import datasets

        return datasets.Dataset.from_list(self.to_list())

    def to_pandas(self) -> "pd.DataFrame":
        """[`~Attribution.to_list`] as a `pandas.DataFrame`.

        Example:

        ```python
        index.attribute(model, queries).to_pandas()[["query", "rank", "score", "text"]]
        ```
        """
        import pandas as pd

        return pd.DataFrame(self.to_list(), columns=columns_of(self))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write [`~Attribution.to_list`] as a table for spreadsheets, in UTF-8.

        A text that a spreadsheet would take for a formula gets a ' before it, and control characters become spaces:
        for programs, [`~Attribution.to_json`] keeps every text as it is.
        """
        write_csv(self, path)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all of the result as JSON, a list of queries with their rows and opponents (docs/querying.md describes
        it); numbers that are none, as NaN, are null."""
        write_json(self, path)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the result to a folder, from which [`~Attribution.load`] reads it; one that was saved there before is
        replaced.

        Raises:
            [`~lorif_hf.errors.BuildFolderError`]: the folder holds something else.
            [`~lorif_hf.errors.StorageError`]: the system refuses it.

        Example:

        ```python
        result.save("paris")
        Attribution.load("paris").save_html("paris.html")
        ```
        """
        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Attribution":
        """Read a result that was saved. Nothing is unpickled, and what does not fit together is refused.

        Raises:
            [`~lorif_hf.errors.ResultFormatError`]: the folder holds none, or one that is not as it was saved.
        """
        return cls(**load(Path(folder)))

    def _count(self, record: dict[str, Any]) -> int:
        """How many rows were ranked with that of a record."""
        assert self.distribution is not None
        spread = self.distribution[record["query_id"]]
        of_token = spread if isinstance(spread, ScoreDistribution) else spread[record["token"]]
        return of_token.count

    def plot(self) -> Any:
        """Bars of the scores, one panel per query. Returns the `matplotlib.figure.Figure`; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('plot() needs matplotlib: pip install "lorif-hf[plot]".') from error

        rankings, k = list(self._rankings()), self.scores.shape[-1]
        figure = Figure(figsize=(9, (0.35 * k + 1.1) * len(rankings)), layout="constrained")
        panels = figure.subplots(len(rankings), 1, squeeze=False)[:, 0]
        for panel, ranking in zip(panels, rankings, strict=True):
            labels = [f"{row}: {shorten(self.examples[row]['text'], 60)}" for row in ranking.rows]
            colours = ["#2a7f62" if score >= 0 else "#b5403a" for score in ranking.scores]
            panel.barh(range(len(labels)), ranking.scores, color=colours)
            panel.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
            panel.invert_yaxis()
            panel.axvline(0, color="0.4", linewidth=0.8)
            panel.set_xlabel("score (nats per unit of example weight)")
            title = shorten(self.queries[ranking.query], 90)
            if ranking.names:
                title = f"{ranking.names['token']}: {shorten(ranking.names['token_text'], 30)!r} of {title}"
            panel.set_title(shorten(title, 90), fontsize=9, loc="left", parse_math=False)
        return figure

    def _repr_html_(self) -> str:
        return self._render("attribution.html")

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that stands alone: no scripts, nothing loaded from elsewhere, every text escaped."""
        Path(path).write_text(self._render("page.html"), encoding="utf-8")

    def _render(self, template: str) -> str:
        """A page, or a part of one: per query its text, what was measured of it, and its rows, or those of each token,
        with a bar of at most 100 percent."""
        panels: list[dict[str, Any]] = []
        for query, value in zip(self.queries, self.losses, strict=True):
            measured = value if self.measure == "loss" else -value
            panels.append({"query": query, "value": measured, "rankings": []})
        for ranking in self._rankings():
            largest = max(map(abs, ranking.scores), default=0) or 1.0
            rows = [
                {
                    "rank": rank + 1,
                    "score": score,
                    "bar": round(100 * abs(score) / largest, 1),
                    **self.examples[row],
                }
                for rank, (score, row) in enumerate(zip(ranking.scores, ranking.rows, strict=True))
            ]
            panels[ranking.query]["rankings"].append({"token": ranking.names.get("token_text"), "rows": rows})
        source = f"{self.repo_id} at {self.commit}" if self.repo_id else None
        named, effect = _MEASURES.get(self.measure, (self.measure, f"raises its {self.measure}"))
        return _TEMPLATES.get_template(template).render(panels=panels, source=source, named=named, effect=effect)


@dataclass(frozen=True)
class _Ranking:
    """Ranked rows: of a query, or of a token (`names`: its place and its text)."""

    query: int
    names: dict[str, Any]
    scores: list[float]
    rows: list[int]


def shorten(text: str | None, length: int) -> str:
    """One line of at most `length` characters, all of them printable: nothing that a terminal would act on."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
    return line if len(line) <= length else line[: length - 1] + "…"
