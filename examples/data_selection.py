"""Select the training data that serves a target task, and show that it does.

The pool is a mixture of five tasks over docstrings of the standard library, each in several wordings. The target is
one of them, given as a few solved examples in words that the pool does not have. A model trained on random rows of the
pool is asked which rows of the whole pool would help with these examples: all of them as one query, `reduce="mean"`.
New models are then trained on the rows that come first, on as many rows that share most words with the examples
(BM25), and on as many random ones.

    python examples/data_selection.py [output folder]
"""

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from ingredients import pictures
from ingredients.small_models import (
    answers,
    completion_rows,
    fresh_folder,
    new_gpt2,
    train_tokenizer,
    trained,
    training_arguments,
)
from ingredients.standard_library import Docstring, docstrings
from ingredients.word_overlap import bm25
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, set_seed

from lorif_hf import InfluenceIndex


PACKAGES = ["asyncio", "email", "logging", "multiprocessing", "tarfile", "tkinter", "turtle", "unittest"]
TARGET = "package"
SELECTED = 0.2  # of the pool

# Of each task: what is answered, the wordings of the pool, and those of the target's examples and tests.
TASKS = {
    "package": (
        lambda piece: piece.package,
        ["Which package is it in?", "Package:", "Imported from"],
        ["Where does it live?", "Part of"],
    ),
    "name": (lambda piece: piece.name.rpartition(".")[2], ["What is it called?", "Name:", "Defined as"], []),
    "first word": (lambda piece: piece.text.split()[0], ["How does it begin?", "First word:", "Begins with"], []),
    "last word": (lambda piece: piece.text.split()[-1], ["How does it end?", "Last word:", "Ends with"], []),
    "length": (lambda piece: str(len(piece.text.split())), ["How long is it?", "Words:", "Its length is"], []),
}


def as_row(piece: Docstring, task: str, wording: str) -> dict[str, str]:
    answer, _, _ = TASKS[task]
    return {"prompt": f"{piece.text}\n{wording}", "completion": f" {answer(piece)}", "task": task}


def make_rows(
    each: int, examples: int, test: int
) -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """The pool, two tasks of each docstring; the target's examples; its test rows."""
    draw = random.Random(0)
    pool, target, tests = [], [], []
    for package in PACKAGES:
        pieces = docstrings(package, most_words=24)
        for rows, part in ((tests, pieces[:test]), (target, pieces[test : test + examples])):
            rows += [as_row(piece, TARGET, draw.choice(TASKS[TARGET][2])) for piece in part]
        for piece in pieces[test + examples :][:each]:
            pool += [as_row(piece, task, draw.choice(TASKS[task][1])) for task in draw.sample(list(TASKS), 2)]
    return pool, target, tests


def train(rows: Dataset, tokenizer: PreTrainedTokenizerFast, folder: Path, epochs: float, seed: int = 0) -> Any:
    set_seed(seed)
    trainer = Trainer(
        model=new_gpt2(tokenizer),
        args=training_arguments(
            folder, num_train_epochs=epochs, learning_rate=3e-3, per_device_train_batch_size=16, seed=seed
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trained(trainer)
    return trainer.model


def run(
    folder: Path, each: int = 70, examples: int = 2, test: int = 15, epochs: float = 15, seeds: int = 2
) -> dict[str, dict[str, Any]]:
    """Train on random rows, ask, select, train again. Returns per selection its tasks and the test accuracy, a mean
    over trainings with different seeds."""
    index_folder = fresh_folder(folder / "index")
    pool_rows, target_rows, test_rows = make_rows(each, examples, test)
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in pool_rows])
    pool = completion_rows(pool_rows, tokenizer)
    count = round(SELECTED * len(pool))
    print(f"A pool of {len(pool)} rows, of which {count} are selected by {len(target_rows)} examples of the target")

    by_chance = np.random.default_rng(0).permutation(len(pool))[:count]
    model = train(pool.select(by_chance), tokenizer, folder, epochs)
    index = InfluenceIndex.build(model, pool, index_folder, processing_class=tokenizer, batch_size=32)
    target = [(row["prompt"], row["completion"]) for row in target_rows]
    result = index.attribute(model, target, top_k=count, reduce="mean")
    shared_words = bm25(pool["text"], [row["prompt"] + row["completion"] for row in target_rows]).mean(axis=0)
    selections = {
        "influence": result.indices[0].tolist(),
        "BM25": np.argsort(-shared_words)[:count].tolist(),
        "random": by_chance.tolist(),
    }

    figures = {}
    for name, chosen in selections.items():
        right = []
        for seed in range(seeds):
            again = train(pool.select(chosen), tokenizer, folder, epochs, seed)
            said = answers(again, tokenizer, [row["prompt"] for row in test_rows], max_new_tokens=6)
            right += [text == row["completion"] for text, row in zip(said, test_rows, strict=True)]
        figures[name] = {"tasks": Counter(pool_rows[row]["task"] for row in chosen), "right": float(np.mean(right))}

    show(figures, count)
    draw_picture(figures, count, folder / "data-selection.png")
    return figures


def show(figures: dict[str, dict[str, Any]], count: int) -> None:
    table = Table(title=f"{count} rows selected by", title_justify="left")
    for column in ("", *(f"task: {task}" for task in TASKS), "right answers"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in figures.items():
        table.add_row(name, *(str(values["tasks"][task]) for task in TASKS), f"{values['right']:.1%}")
    Console().print(table)


def draw_picture(figures: dict[str, dict[str, Any]], count: int, path: Path) -> None:
    """Which tasks are selected, the target in green; and what that is worth."""
    drawn, (mixture, right) = pictures.figure(2, height=2.6)
    greys = ["#8d9896", "#a8b1af", "#c2c9c7", "#dce0df"]
    colours = dict(zip(TASKS, [pictures.GREEN, *greys], strict=True))
    left = np.zeros(len(figures))
    for task, colour in colours.items():
        parts = np.array([values["tasks"][task] / count for values in figures.values()])
        mixture.barh(range(len(figures)), parts, left=left, color=colour, height=0.62, label=task)
        left += parts
    mixture.set_yticks(range(len(figures)), list(figures))
    mixture.invert_yaxis()
    mixture.xaxis.set_major_formatter("{x:.0%}")
    pictures.title(mixture, "Tasks of the rows selected, the target's in green")
    mixture.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), handlelength=1, fontsize=9, frameon=False)
    pictures.bars(
        right,
        list(figures),
        [values["right"] for values in figures.values()],
        [pictures.GREEN, pictures.BROWN, pictures.GREY],
    )
    pictures.title(right, "Right answers after training on them")
    pictures.save(drawn, path)


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "selection-output"))
