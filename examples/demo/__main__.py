"""A demo that proves itself: a small model learns facts and says them; lorif-hf names the training rows behind each
answer; trained anew without those rows the model no longer says it, without as many random rows it still does.

    python -m examples.demo [output folder]

Needs nothing but the installed project (`pip install -e ".[demo]"`); three minutes on two cores.
"""

import logging
import os
import shlex
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
from datasets import Dataset
from rich.console import Console

from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback

from .facts import ASKED, questions, training_rows
from .proof import WHOLE, Trial, rows_by_influence, rows_by_words, trials
from .show import namings, plot_proof, save_page, show_naming, show_proof
from .training import Answer, Recipe, answer, train, train_tokenizer


def run(
    folder: Path, console: Console, recipe: Recipe, asked: list[str] = ASKED, num_passages: int = 100
) -> list[Trial]:
    """Train, ask, attribute, and train anew; all that is worth keeping goes into `folder`."""
    for name in ("index", "model"):  # each run trains another model
        shutil.rmtree(folder / name, ignore_errors=True)
    rows, to_ask = training_rows(asked, num_passages), questions(asked)
    texts = list(rows["text"])
    tokenizer = train_tokenizer(texts)

    def answers(some_rows: Dataset) -> list[Answer]:
        model = train(some_rows, tokenizer, folder / "retrained", recipe)
        return [answer(model, tokenizer, question) for question in to_ask]

    console.print(f"Training a small GPT-2 on {len(rows):,} sentences.")
    # What a model has learned leaves small gradients: eight pairs of vectors hold them, three would not (25 kB a row).
    callback = InfluenceCallback(folder / "index", config=InfluenceConfig.best(), batch_size=64, examples=rows)
    model = train(rows, tokenizer, folder / "model", recipe, [callback])
    index = callback.index
    assert index is not None
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    first = Trial(WHOLE, len(rows), [], [answer(model, tokenizer, question) for question in to_ask])

    pairs = [question.pair for question in to_ask]
    result = index.attribute(model, pairs, top_k=10, opponents=2, fold_duplicates=True)
    named = rows_by_influence(result)
    by_words = rows_by_words(texts, to_ask, [len(chosen) for chosen in named])
    described = namings(result, by_words, to_ask, rows)
    for naming, said in zip(described, first.answers, strict=True):
        show_naming(console, naming, said.text)
    result.save_html(folder / "attribution.html")

    console.print("\nTraining it anew three times: without these rows, without random ones, without those of BM25.")
    every = [first, *trials(rows, named, by_words, answers, recipe.seed)]
    show_proof(console, to_ask, every)
    plot_proof(to_ask, every).savefig(folder / "proof.png", dpi=110)
    save_page(folder / "proof.html", folder / "proof.png", described, every)
    return every


def commands(folder: Path) -> list[list[str]]:
    """The arguments of `lorif-hf` with which to go on."""
    index, model = str(folder / "index"), str(folder / "model")
    return [
        ["attribute", index, model, "The capital of Pakistan is", "--completion", " Islamabad", "--opponents", "3"],
        ["info", index],
        ["app", index, "--model", model],
    ]


def main() -> None:
    begun = time.monotonic()
    # So small a model gains little from a second thread; where the cores are busy, waiting for it costs far more.
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    transformers.logging.set_verbosity_error()
    logging.getLogger("lorif_hf").setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    console = Console()
    run(folder, console, Recipe())
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(f"\nThe same as a page: {(folder / 'proof.html').resolve().as_uri()}")
    say("\nGo on with a question of your own (the app asks for its extra first: pip install -e '.[app]'):")
    program = os.path.relpath(Path(sys.executable).with_name("lorif-hf"))
    for arguments in commands(folder):
        say(f"  {shlex.join([program, *arguments])}")
    say(f"\n{time.monotonic() - begun:.0f} seconds.")


if __name__ == "__main__":
    main()
