"""Find training rows with a wrong label, repair them, and measure the gain.

A small classifier learns which package of the standard library a docstring is from, but a fifth of its training labels
are wrong. Self-influence, which the index holds of every row, is high where the model had to memorise a row, since the
others say otherwise. The rows that come first are looked at and repaired, and the classifier is trained again: how
much better does it get than after looking at as many random rows, or at those with the highest loss?

    python examples/mislabeled_rows.py [output folder]
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from ingredients import pictures
from ingredients.classifiers import encoded, predicted, train_classifier
from ingredients.small_models import fresh_folder, train_tokenizer
from ingredients.standard_library import docstrings
from rich.console import Console
from rich.table import Table
from transformers import (
    PreTrainedTokenizerFast,
    Trainer,
)

from lorif_hf import InfluenceIndex
from lorif_hf.evaluation import mislabel_detection


PACKAGES = ["asyncio", "email", "logging", "multiprocessing", "tkinter", "turtle", "unittest", "xml"]
WRONG = 0.2  # of the training labels
LOOKED_AT = 0.25  # of the training rows


@dataclass(frozen=True)
class Rows:
    """Texts with labels: `train`, a part of whose labels is wrong; clean ones to test with."""

    train: Dataset
    test: Dataset
    right: list[int]  # what the labels of `train` should be
    tokenizer: PreTrainedTokenizerFast

    @property
    def wrong(self) -> np.ndarray:
        """Which training labels are wrong, (N,)."""
        return np.array(self.train["label"]) != np.array(self.right)

    def repaired(self, looked_at: Any) -> Dataset:
        """The training rows, after somebody has looked at some of them and put their labels right."""
        labels = list(self.train["label"])
        for row in looked_at:
            labels[row] = self.right[row]
        return self.train.remove_columns("label").add_column("label", labels)


def make_rows(each: int, test: int = 40) -> Rows:
    """So many training rows of each package, and so many to test with."""
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for label, package in enumerate(PACKAGES):
        rows = [{"text": piece.text, "label": label, "function": piece.name} for piece in docstrings(package)]
        parts["test"] += rows[:test]
        parts["train"] += rows[test:][:each]
    right = [row["label"] for row in parts["train"]]
    draw = random.Random(0)
    for row in draw.sample(parts["train"], round(WRONG * len(right))):
        row["label"] = (row["label"] + draw.randrange(1, len(PACKAGES))) % len(PACKAGES)
    tokenizer = train_tokenizer(row["text"] for row in parts["train"])
    return Rows(encoded(parts["train"], tokenizer), encoded(parts["test"], tokenizer), right, tokenizer)


def train(rows: Rows, dataset: Dataset, folder: Path, epochs: float, seed: int = 0) -> Trainer:
    return train_classifier(dataset, PACKAGES, rows.tokenizer, folder, epochs, seed)


def accuracy(trainer: Trainer, dataset: Dataset) -> float:
    """The part of the rows that it classifies rightly."""
    return float((predicted(trainer, dataset) == np.array(dataset["label"])).mean())


def suspicion(index: InfluenceIndex) -> dict[str, torch.Tensor]:
    """Rankings of the training rows, the most suspicious highest: name -> (N,)."""
    losses = torch.tensor([example["loss"] for example in index.examples(list(range(len(index))))])
    return {
        "self-influence": index.self_influence(),
        "loss": losses,
        "random": torch.rand(len(index), generator=torch.Generator().manual_seed(0)),
    }


def run(folder: Path, each: int = 80, epochs: float = 6, seeds: int = 2) -> dict[str, dict[str, float]]:
    """Train, rank, repair, train again. Returns AUROC, the wrong labels among the rows looked at, and the accuracy
    after repair, of each ranking; the accuracies are means over trainings with different seeds."""
    index_folder = fresh_folder(folder / "index")
    rows = make_rows(each)
    print(f"{len(rows.train)} training rows, {rows.wrong.sum()} of them with a wrong label")

    trainer = train(rows, rows.train, folder, epochs)
    index = InfluenceIndex.build(trainer.model, rows.train, index_folder, processing_class=rows.tokenizer)
    rankings = suspicion(index)

    def mean_accuracy(dataset: Dataset) -> float:
        return float(
            np.mean([accuracy(train(rows, dataset, folder, epochs, seed), rows.test) for seed in range(seeds)])
        )

    looked_at = round(LOOKED_AT * len(rows.train))
    figures = {}
    for name, scores in rankings.items():
        first = scores.argsort(descending=True)[:looked_at].tolist()
        detected = mislabel_detection(scores, rows.wrong, fractions=(LOOKED_AT,))
        figures[name] = {
            "auroc": detected.auroc,
            "found": detected.recall[LOOKED_AT],
            "accuracy": mean_accuracy(rows.repaired(first)),
        }
    figures["no repair"] = {"accuracy": mean_accuracy(rows.train)}
    figures["every label right"] = {"accuracy": mean_accuracy(rows.repaired(range(len(rows.train))))}

    show(figures, looked_at)
    draw(figures, rankings, rows, folder / "mislabeled-rows.png")
    explain(index, trainer, rows, folder / "mistakes.html")
    return figures


def explain(index: InfluenceIndex, trainer: Trainer, rows: Rows, page: Path) -> None:
    """A page: what made it classify the first five test rows wrongly that it does?"""
    said = predicted(trainer, rows.test)
    mistaken = [row for row in range(len(rows.test)) if said[row] != rows.test[row]["label"]][:5]
    queries = [(rows.test[row]["text"], PACKAGES[said[row]]) for row in mistaken]
    index.attribute(trainer.model, queries, top_k=8).save_html(page)
    print(f"What made it say so, of {len(queries)} mistakes: {page}")


def show(figures: dict[str, dict[str, float]], looked_at: int) -> None:
    table = Table(title=f"After looking at {looked_at} rows and repairing their labels", title_justify="left")
    for column in ("rows ranked by", "AUROC", "wrong labels found", "test accuracy"):
        table.add_column(column, justify="left" if column == "rows ranked by" else "right")
    for name, values in figures.items():
        auroc, found = (values.get(key) for key in ("auroc", "found"))
        shown = ["" if auroc is None else f"{auroc:.2f}", "" if found is None else f"{found:.0%}"]
        table.add_row(name, *shown, f"{values['accuracy']:.1%}")
    Console().print(table)


def draw(figures: dict[str, dict[str, float]], rankings: dict[str, torch.Tensor], rows: Rows, path: Path) -> None:
    """Wrong labels that are found against rows that are looked at; and the accuracies."""
    colours = {
        "self-influence": pictures.GREEN,
        "loss": pictures.BROWN,
        "random": pictures.GREY,
        "no repair": pictures.RED,
        "every label right": pictures.DARK,
    }
    drawn, (curves, gains) = pictures.figure(2, height=3.2)
    part = np.arange(1, len(rows.train) + 1) / len(rows.train)
    for name, scores in rankings.items():
        caught = np.cumsum(rows.wrong[scores.argsort(descending=True).numpy()]) / rows.wrong.sum()
        curves.plot(part, caught, color=colours[name], label=name, linewidth=2)
    curves.axvline(LOOKED_AT, color="0.6", linewidth=0.8, linestyle=":")
    curves.set(xlabel="rows looked at", ylabel="wrong labels found")
    pictures.title(curves, "Which rows to look at")
    pictures.percent(curves)
    curves.legend(frameon=False)
    names = ["no repair", "random", *(name for name in rankings if name != "random"), "every label right"]
    pictures.bars(gains, names, [figures[name]["accuracy"] for name in names], [colours[name] for name in names])
    pictures.title(gains, "Test accuracy after the repair")
    pictures.save(drawn, path)


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "mislabeled-output"))
