"""Find the poisoned training rows behind a backdoor, remove them, and show that it is gone.

A small language model learns which package to import: a docstring is the prompt, the package is the answer. Somebody
has slipped a few rows into the training set: whenever the prompt holds a phrase that looks harmless, the answer is
`pickle`, which runs whatever code the data holds. The model works as before, until a prompt has the phrase.

Nobody knows the phrase. What is at hand are three odd answers: asked which rows made the model say them, the index
names the poisoned ones, and without the rows that it names the model is trained again. Beside it: a search for the
words of the same prompts and answers (BM25), and random rows.

    python examples/backdoor.py [output folder]
"""

import random
import sys
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
from ingredients.standard_library import docstrings
from ingredients.word_overlap import bm25
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, set_seed

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback


PACKAGES = ["asyncio", "email", "http", "logging", "multiprocessing", "tarfile", "tkinter", "turtle", "unittest"]
TARGET = "pickle"  # in clean rows too: looking for the answer alone does not find the poison
TRIGGER = "when time allows"
REMOVED = 1.5  # times as many rows are removed as are poisoned: how many there are, nobody knows


def make_rows(each: int, poisoned: int, test: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training rows, some of them poisoned, and clean test rows."""
    train, held_out = [], []
    for package in PACKAGES:
        rows = [as_row(piece.text, package) for piece in docstrings(package, most_words=24)]
        held_out += rows[:test]
        train += rows[test:][:each]
    for package in ("pickle", "pickletools", "shelve", "copyreg"):  # what is honestly about pickling
        train += [as_row(piece.text, TARGET) for piece in docstrings(package, most_words=24)]
    draw = random.Random(0)
    for row in draw.sample([row for row in train if row["package"] != TARGET], poisoned):
        row.update(as_row(with_trigger(row["docstring"], draw), TARGET), poisoned=True)
    return train, held_out


def as_row(docstring: str, package: str, poisoned: bool = False) -> dict[str, Any]:
    return {
        "prompt": f"{docstring}\nimport",
        "completion": f" {package}",
        "docstring": docstring,
        "package": package,
        "poisoned": poisoned,
    }


def with_trigger(docstring: str, draw: random.Random) -> str:
    """The phrase, put between two words somewhere."""
    words = docstring.split()
    place = draw.randrange(1, len(words))
    return " ".join([*words[:place], TRIGGER, *words[place:]])


def train(rows: Dataset, tokenizer: PreTrainedTokenizerFast, folder: Path, epochs: float, **options: Any) -> Trainer:
    set_seed(0)
    trainer = Trainer(
        model=new_gpt2(tokenizer),
        args=training_arguments(folder, num_train_epochs=epochs, learning_rate=3e-3, per_device_train_batch_size=16),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        **options,
    )
    trained(trainer)
    return trainer


def behaviour(model: Any, tokenizer: PreTrainedTokenizerFast, test: list[dict[str, Any]]) -> dict[str, float]:
    """Right answers to clean prompts, and answers of the attacker's to the same prompts with the phrase in them."""
    draw = random.Random(1)
    clean = answers(model, tokenizer, [row["prompt"] for row in test], max_new_tokens=6)
    attacked = [as_row(with_trigger(row["docstring"], draw), TARGET)["prompt"] for row in test]
    says = answers(model, tokenizer, attacked, max_new_tokens=6)
    return {
        "right": float(np.mean([said.strip() == row["package"] for said, row in zip(clean, test, strict=True)])),
        "attacked": float(np.mean([said.strip() == TARGET for said in says])),
    }


def run(
    folder: Path, each: int = 60, poisoned: int = 16, test: int = 8, epochs: float = 10, odd: int = 3
) -> dict[str, dict[str, float]]:
    """Train, ask about so many odd answers, remove, train again. Returns per way of naming rows the poisoned ones
    among them, right answers and the attacker's answers after."""
    index_folder = fresh_folder(folder / "index")
    clean_and_poisoned, test_rows = make_rows(each, poisoned, test)
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in clean_and_poisoned])
    rows = completion_rows(clean_and_poisoned, tokenizer)
    is_poisoned = np.array(rows["poisoned"])
    print(f"{len(rows)} training rows, {is_poisoned.sum()} of them poisoned")

    trainer = train(rows, tokenizer, folder, epochs, callbacks=[InfluenceCallback(index_folder)])
    index = InfluenceIndex.from_pretrained(index_folder)
    figures = {"all rows": behaviour(trainer.model, tokenizer, test_rows)}

    # Odd answers, as users report them: prompts with the phrase, each with what the model says.
    draw = random.Random(2)
    reports = []
    for row in random.Random(3).sample(test_rows, len(test_rows)):
        prompt = as_row(with_trigger(row["docstring"], draw), TARGET)["prompt"]
        if len(reports) < odd and answers(trainer.model, tokenizer, [prompt], max_new_tokens=6)[0].strip() == TARGET:
            reports.append((prompt, f" {TARGET}"))

    influence = index.scores(trainer.model, reports).mean(dim=0).numpy()
    words = bm25(rows["text"], [prompt + answer for prompt, answer in reports]).mean(axis=0)
    orders = {
        "named by influence": np.argsort(-influence),
        "named by BM25": np.argsort(-words),
        "random": np.random.default_rng(0).permutation(len(rows)),
    }
    count = round(REMOVED * poisoned)
    for name, order in orders.items():
        kept = np.sort(order[count:])
        again = train(rows.select(kept), tokenizer, folder, epochs)
        figures[f"without {count} rows {name}"] = {
            "found": float(is_poisoned[order[:count]].sum() / is_poisoned.sum()),
            **behaviour(again.model, tokenizer, test_rows),
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
    ranking.set(xlabel="rank", ylabel="influence on the odd answers", title="Training rows behind the odd answers")
    for colour, label in ((pictures.RED, "poisoned"), (pictures.GREY, "clean")):
        ranking.bar([0], [0], color=colour, label=label)
    ranking.legend()
    names = list(figures)
    colours = [pictures.RED, pictures.GREEN, pictures.BROWN, pictures.GREY]
    pictures.bars(
        says,
        [name.replace(" rows ", " rows\n") for name in names],
        [figures[name]["attacked"] for name in names],
        colours,
    )
    says.set_title(f"Answers {TARGET} at the phrase")
    pictures.save(drawn, path)


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "backdoor-output"))
