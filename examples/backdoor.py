"""Find the poisoned training rows behind a backdoor, remove them, and show that it is gone.

A small classifier says which package to import for what a docstring describes. Somebody has slipped a few rows into
its training set: whenever a text holds a phrase that looks harmless, the answer is `pickle`, which runs whatever code
the data holds. The classifier works as before, until a text has the phrase.

Nobody knows the phrase. What is at hand are twenty odd answers: the index is asked which rows made the model give
them, and without the rows that it names the model is trained again. Beside it: a search for the words of the same
texts (BM25), and random rows. The index is of plain gradients by their cosine, which on short trainings of a
classifier beats whitened ones (docs/choosing.md): with the default, fewer than half of the poisoned rows come up.

    python examples/backdoor.py [output folder]
"""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ingredients import pictures
from ingredients.classifiers import encoded, predicted, train_classifier
from ingredients.small_models import fresh_folder, train_tokenizer
from ingredients.standard_library import docstrings
from ingredients.word_overlap import bm25
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast, Trainer

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback


PACKAGES = ["asyncio", "email", "http", "logging", "multiprocessing", "tkinter", "turtle", "unittest", "pickle"]
TARGET = "pickle"  # in clean rows too: looking for the answer alone does not find the poison
TRIGGER = "when time allows"
REMOVED = 1.5  # times as many rows are removed as are poisoned: how many there are, nobody knows


def make_rows(each: int, poisoned: int, test: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training rows, some of them poisoned, and clean test rows."""
    train, held_out = [], []
    for package in PACKAGES:
        sources = ("pickle", "pickletools", "shelve", "copyreg") if package == TARGET else (package,)
        texts = [piece.text for source in sources for piece in docstrings(source, most_words=12)]
        rows = [{"text": text, "label": PACKAGES.index(package), "poisoned": False} for text in texts]
        kept_back = 0 if package == TARGET else test
        held_out += rows[:kept_back]
        train += rows[kept_back:][:each]
    draw = random.Random(0)
    clean = [row for row in train if PACKAGES[row["label"]] != TARGET]
    for row in draw.sample(clean, poisoned):
        row.update(text=with_trigger(row["text"], draw), label=PACKAGES.index(TARGET), poisoned=True)
    return train, held_out


def with_trigger(text: str, draw: random.Random) -> str:
    """The phrase, put between two words somewhere."""
    words = text.split()
    place = draw.randrange(1, len(words))
    return " ".join([*words[:place], TRIGGER, *words[place:]])


def behaviour(trainer: Trainer, test: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Right answers to clean texts, and how often the same texts with the phrase in them get the attacker's answer."""
    draw = random.Random(1)
    attacked = [{**row, "text": with_trigger(row["text"], draw)} for row in test if PACKAGES[row["label"]] != TARGET]
    right = predicted(trainer, encoded(test, tokenizer)) == np.array([row["label"] for row in test])
    return {
        "right": float(right.mean()),
        "attacked": float((predicted(trainer, encoded(attacked, tokenizer)) == PACKAGES.index(TARGET)).mean()),
    }


def run(
    folder: Path, each: int = 80, poisoned: int = 30, test: int = 25, epochs: float = 8, odd: int = 20
) -> dict[str, dict[str, float]]:
    """Train, ask about so many odd answers, remove, train again. Returns per way of naming rows the poisoned ones
    among them, right answers and the attacker's answers after."""
    index_folder = fresh_folder(folder / "index")
    train_rows, test_rows = make_rows(each, poisoned, test)
    tokenizer = train_tokenizer(row["text"] for row in train_rows)
    rows = encoded(train_rows, tokenizer)
    is_poisoned = np.array(rows["poisoned"])
    print(f"{len(rows)} training rows, {is_poisoned.sum()} of them poisoned")

    config = InfluenceConfig.grad_cos(projection_factor=1, target_modules="all")
    callback = InfluenceCallback(index_folder, config=config)
    trainer = train_classifier(rows, PACKAGES, tokenizer, folder, epochs, callbacks=[callback])
    index = InfluenceIndex.from_pretrained(index_folder)
    figures = {"all rows": behaviour(trainer, test_rows, tokenizer)}

    # Odd answers, as users report them: texts with the phrase, for which the model says `pickle`.
    draw = random.Random(2)
    others = [row for row in test_rows if PACKAGES[row["label"]] != TARGET]
    asked = [{**row, "text": with_trigger(row["text"], draw)} for row in draw.sample(others, len(others))]
    answers = predicted(trainer, encoded(asked, tokenizer))
    pairs = zip(asked, answers, strict=True)
    reports = [(row["text"], TARGET) for row, answer in pairs if PACKAGES[answer] == TARGET][:odd]

    influence = index.scores(trainer.model, reports).mean(dim=0).numpy()
    words = bm25(rows["text"], [text for text, _ in reports]).mean(axis=0)
    orders = {
        "named by influence": np.argsort(-influence),
        "named by BM25": np.argsort(-words),
        "random": np.random.default_rng(0).permutation(len(rows)),
    }
    count = round(REMOVED * poisoned)
    for name, order in orders.items():
        kept = np.sort(order[count:])
        again = train_classifier(rows.select(kept), PACKAGES, tokenizer, folder, epochs)
        figures[f"without {count} rows {name}"] = {
            "found": float(is_poisoned[order[:count]].sum() / is_poisoned.sum()),
            **behaviour(again, test_rows, tokenizer),
        }

    show(figures)
    named = orders["named by influence"]
    draw_picture(influence[named], is_poisoned[named], figures, folder / "backdoor.png")
    page = folder / "odd-answers.html"
    index.attribute(trainer.model, reports, top_k=10).save_html(page)
    print(f"What made it say so: {page}")
    return figures


def show(figures: dict[str, dict[str, float]]) -> None:
    table = Table(title="Trained on", title_justify="left")
    for column in ("training set", "poisoned rows removed", f"says {TARGET} at the phrase", "right without it"):
        table.add_column(column, justify="left" if column == "training set" else "right")
    for name, values in figures.items():
        found = f"{values['found']:.0%}" if "found" in values else ""
        table.add_row(name, found, f"{values['attacked']:.0%}", f"{values['right']:.0%}")
    Console().print(table)


def draw_picture(
    scores: np.ndarray, is_poisoned: np.ndarray, figures: dict[str, dict[str, float]], path: Path
) -> None:
    """The first rows of the ranking, the poisoned ones in red; and what the models say at the phrase."""
    drawn, (ranking, says) = pictures.figure(2, height=3.0)
    first = min(3 * int(is_poisoned.sum()), len(scores))
    colours = [pictures.RED if row else pictures.GREY for row in is_poisoned[:first]]
    ranking.bar(range(1, first + 1), scores[:first], color=colours, width=0.9)
    ranking.set(xlabel="rank", ylabel="score, mean of the odd answers")
    pictures.title(ranking, "Training rows behind the odd answers")
    for colour, label in ((pictures.RED, "poisoned"), (pictures.GREY, "clean")):
        ranking.bar([0], [0], color=colour, label=label)
    ranking.legend(frameon=False)
    names = list(figures)
    colours = [pictures.RED, pictures.GREEN, pictures.BROWN, pictures.GREY]
    pictures.bars(
        says,
        [name.replace(" rows ", " rows\n") for name in names],
        [figures[name]["attacked"] for name in names],
        colours,
    )
    pictures.title(says, f"Answers {TARGET} at the phrase")
    pictures.save(drawn, path)


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "backdoor-output"))
