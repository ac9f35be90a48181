"""What people look at: tables in the terminal, a plot, and a page with both."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .facts import Question
from .proof import NAMED, RANDOM, WHOLE, WORDS, Trial


MARKS = {WHOLE: ("o", "#1c2321"), RANDOM: ("D", "#8a9490"), WORDS: ("s", "#c77d1e"), NAMED: ("X", "#2a7f62")}
PAGE = Path(__file__).parent / "page.html"


@dataclass(frozen=True)
class Row:
    """A training row beside a question: how it stands to it, in words."""

    row: int
    text: str
    kind: str
    score: float | None = None

    @property
    def teaches(self) -> bool:
        """Whether it tells what was asked, with the answer last."""
        return self.kind == "the fact"


@dataclass(frozen=True)
class Naming:
    """The rows that are named for a question: its proponents and opponents, and those that share its words."""

    question: Question
    proponents: Sequence[Row]
    opponents: Sequence[Row]
    by_words: Sequence[Row]


def described(rows: Dataset, row: int, question: Question, score: float | None = None) -> Row:
    """A row, and what it tells of what was asked."""
    example = rows[row]
    if example["subject"] != question.subject:
        kind = f"about {example['subject']}"
    elif example["relation"] != question.relation:
        kind = f"its {example['relation']}"
    else:
        kind = "the fact" if example["order"] == "answer last" else "answer first"
    return Row(row, example["text"], kind, score)


def namings(result: Any, by_words: Sequence[Sequence[int]], questions: Sequence[Question], rows: Dataset) -> list:
    """Per question the rows that are named, described. The near-duplicates of a row are not shown beside it."""
    named = []
    for question, ranked, worded in zip(questions, result, by_words, strict=True):
        sides = ((ranked.indices, ranked.scores), (ranked.opponent_indices, ranked.opponent_scores))
        proponents, opponents = (
            [
                described(rows, row, question, score)
                for row, score in zip(indices[0].tolist(), scores[0].tolist(), strict=True)
            ]
            for indices, scores in sides
        )
        named.append(
            Naming(
                question, proponents, opponents, [described(rows, row, question) for row in worded[: len(proponents)]]
            )
        )
    return named


def show_naming(console: Console, naming: Naming, said: str, shown: int = 5) -> None:
    """A question, what the model says, and the first rows of either ranking side by side."""
    console.print(f"\n[bold]{escape(naming.question.prompt)}[/bold] [green]{escape(said)}[/green]", highlight=False)
    table = Table(expand=True, pad_edge=False)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("lorif-hf: training rows that made the model say it", ratio=1)
    table.add_column("BM25: training rows with the same words", ratio=1)
    for row, other in zip(naming.proponents[:shown], naming.by_words, strict=False):
        table.add_row(f"{row.score:+.2f}", _cell(row), _cell(other))
    table.add_section()
    for row in naming.opponents:
        table.add_row(f"{row.score:+.2f}", _cell(row), "")
    console.print(table)


def _cell(row: Row) -> str:
    colour = "green" if row.teaches else "yellow"
    return f"{escape(row.text)} [{colour}]({escape(row.kind)})[/{colour}]"


def show_proof(console: Console, questions: Sequence[Question], trials: Sequence[Trial]) -> None:
    """Each answer, and the loss of the true one, of each training."""
    table = Table(title="Asked again after training anew", title_justify="left", pad_edge=False)
    table.add_column("question", ratio=1)
    for trial in trials:
        removed = f" ({len(trial.removed)})" if trial.removed else ""
        table.add_column(f"{trial.name}{removed}")
    for number, question in enumerate(questions):
        cells = []
        for trial in trials:
            answer = trial.answers[number]
            colour = "green" if answer.right else "red"
            cells.append(f"[{colour}]{escape(answer.text)}[/{colour}] {answer.loss:.2f}")
        table.add_row(escape(question.prompt), *cells)
    table.add_section()
    table.add_row("right answers", *(f"[bold]{trial.right} of {len(questions)}[/bold]" for trial in trials))
    console.print(table)


def plot_proof(questions: Sequence[Question], trials: Sequence[Trial]) -> Figure:
    """The loss of each true answer after each training; filled where the model says it."""
    figure = Figure(figsize=(9, 0.5 * len(questions) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, _ in enumerate(questions):
        losses = [trial.answers[place].loss for trial in trials]
        axes.plot([min(losses), max(losses)], [place, place], color="#d8dfdc", linewidth=2, zorder=1)
    for trial in trials:
        marker, colour = MARKS[trial.name]
        label = f"{trial.name}: {trial.right} of {len(questions)} right"
        for right in (True, False):
            places = [place for place, answer in enumerate(trial.answers) if answer.right == right]
            axes.scatter(
                [trial.answers[place].loss for place in places],
                places,
                marker=marker,
                s=70,
                facecolor=colour if right else "white",
                edgecolor=colour,
                linewidth=1.6,
                zorder=3 if trial.name == NAMED else 2,
            )
        axes.scatter([], [], marker=marker, s=70, color=colour, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(range(len(questions)), [f"{q.prompt} {q.answer}" for q in questions], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("loss of the true answer, nats; filled: the model says it, hollow: it does not", loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def save_page(
    path: Path, image: Path, namings: Sequence[Naming], trials: Sequence[Trial], attribution: str = "attribution.html"
) -> None:
    """A page that stands alone, with the plot in it, beside that of the attribution, which it links to."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE.read_text(encoding="utf-8"))
    picture = base64.b64encode(image.read_bytes()).decode()
    text = template.render(namings=namings, trials=trials, picture=picture, attribution=attribution)
    path.write_text(text, encoding="utf-8")
