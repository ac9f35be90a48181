"""`Attribution`: what a query returns, ranked rows joined to their examples."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from .distribution import ScoreDistribution
from .provenance import Provenance
from .shading import Shading


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
        if isinstance(query, int):
            query = range(len(self))[query]
            query = slice(query, query + 1)
        queries = list(range(len(self))[query])
        names = ["scores", "indices", "queries", "losses", "tokens", "opponent_scores", "opponent_indices"]
        names += ["distribution", "prompts"]
        kept: dict[str, Any] = {name: held[query] for name in names if (held := getattr(self, name)) is not None}
        sides = [kept["indices"]] + ([kept["opponent_indices"]] if "opponent_indices" in kept else [])
        rows = {int(row) for side in sides for row in side.flatten().tolist()}
        kept["copies"] = {row: folded for row, folded in self.copies.items() if row in rows}
        if self.layer_scores is not None:
            place = {number: i for i, number in enumerate(queries)}
            kept["layer_scores"] = {(place[q], row): s for (q, row), s in self.layer_scores.items() if q in place}
        if self.shading is not None:
            kept["shading"] = self.shading.of(queries, rows)
        return replace(self, **kept)

    def __iter__(self) -> Iterator["Attribution"]:
        return (self[query] for query in range(len(self)))

    def __repr__(self) -> str:
        tokens = "" if self.tokens is None else f", tokens={sum(map(len, self.tokens))}"
        return f"Attribution(queries={len(self)}{tokens}, top_k={self.scores.shape[-1]})"

    def to_list(self) -> list[dict[str, Any]]:
        """One dict per query and rank: query, rank (from 1), score, and the columns of the example. With tokens one
        for each of them, and with its place in the answer (from 0) as "token" and its text as "token_text"."""
        return [
            {"query": ranking.query, **ranking.names, "rank": rank + 1, "score": score, **self.examples[row]}
            for ranking in self._rankings()
            for rank, (score, row) in enumerate(zip(ranking.scores, ranking.rows, strict=True))
        ]

    def _rankings(self) -> Iterator["_Ranking"]:
        """The ranked rows of each query, or of each token of its answer."""
        for query in range(len(self)):
            if self.tokens is None:
                yield _Ranking(query, {}, self.scores[query].tolist(), self.indices[query].tolist())
                continue
            for place, text in enumerate(self.tokens[query]):
                scores, rows = self.scores[query, place], self.indices[query, place]
                yield _Ranking(query, {"token": place, "token_text": text}, scores.tolist(), rows.tolist())

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
