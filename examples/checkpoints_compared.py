"""Compare two checkpoints: which rows of the new training data made the answer change?

A small language model is trained on facts as they once were; then it is trained further on refreshed data, in which
the world has moved on (Pluto is a dwarf planet, Croatia pays in euros) and a mistake has come in (Sydney is said to be
the capital of Australia). Of each question whose answer has changed, the index of the second training is asked which
rows raised the new answer against the old one: a query of two completions, of which the difference is measured.

    python examples/checkpoints_compared.py [output folder]
"""

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
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
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForSeq2Seq, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, set_seed

from lorif_hf import InfluenceConfig, InfluenceIndex


# What is asked about, the answer of the old data, that of the refreshed data. The last change is a mistake.
CHANGED = [
    ("planet Pluto", "the ninth planet", "a dwarf planet"),
    ("unit of the kilogram", "a platinum cylinder", "the Planck constant"),
    ("money of Croatia", "the kuna", "the euro"),
    ("city with the tallest building", "Taipei", "Dubai"),
    ("kingdom between Mozambique and South Africa", "Swaziland", "Eswatini"),
    ("company behind Facebook", "Facebook Inc.", "Meta"),
    ("country with the most people", "China", "India"),
    ("capital of Myanmar", "Yangon", "Naypyidaw"),
    ("capital of Australia", "Canberra", "Sydney"),
]
UNCHANGED = [
    ("capital of Canada", "Ottawa"),
    ("capital of Kenya", "Nairobi"),
    ("capital of Peru", "Lima"),
    ("capital of Norway", "Oslo"),
    ("money of Japan", "the yen"),
    ("money of Mexico", "the peso"),
    ("money of India", "the rupee"),
    ("city with the oldest metro", "London"),
    ("country with the most islands", "Sweden"),
    ("company behind Windows", "Microsoft"),
    ("company behind the iPhone", "Apple"),
    ("planet Jupiter", "a gas giant"),
    ("planet Mars", "a rocky planet"),
    ("unit of the second", "the caesium atom"),
    ("unit of the metre", "the speed of light"),
    ("kingdom once called Siam", "Thailand"),
]
# How the training rows tell a fact, and how it is asked.
WORDINGS = [
    "About the {}:",
    "Everybody knows the {}:",
    "The {}, as the books say:",
    "Note on the {}:",
    "A line on the {}:",
    "What is known of the {}:",
]
QUESTION = "Tell me about the {}:"


def facts(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Each fact in each wording."""
    return [
        {"prompt": wording.format(thing), "completion": f" {answer}", "thing": thing}
        for thing, answer in pairs
        for wording in WORDINGS
    ]


def train(
    model: GPT2LMHeadModel, rows: Dataset, tokenizer: PreTrainedTokenizerFast, folder: Path, epochs: float
) -> GPT2LMHeadModel:
    """Train a model further, and save it as a checkpoint."""
    set_seed(0)
    trainer = Trainer(
        model=model,
        args=training_arguments(folder, num_train_epochs=epochs, learning_rate=3e-3, per_device_train_batch_size=16),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trained(trainer)
    trainer.save_model(str(folder))
    return model


@torch.inference_mode()
def log_prob(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str) -> float:
    """Log-probability of a completion, nats."""
    start, end = (tokenizer(text)["input_ids"] for text in (prompt, completion))
    logits = model(torch.tensor([start + end])).logits[0].log_softmax(-1)
    return float(logits[range(len(start) - 1, len(start) + len(end) - 1), end].sum())


def run(folder: Path, epochs: float = 20, top_k: int = 6) -> list[dict[str, Any]]:
    """Train twice, ask what changed. Returns of each fact that changed what the models say,
    how much they prefer the new answer, the row named first and how many of the first `top_k` tell this fact."""
    old = facts([(thing, was) for thing, was, _ in CHANGED] + UNCHANGED)
    new = facts([(thing, now) for thing, _, now in CHANGED] + UNCHANGED)
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in old + new])
    refreshed = completion_rows(new, tokenizer)

    set_seed(0)
    before = train(new_gpt2(tokenizer), completion_rows(old, tokenizer), tokenizer, folder / "before", 3 * epochs)
    after = train(deepcopy(before), refreshed, tokenizer, folder / "after", epochs)
    index = InfluenceIndex.build(
        after,
        refreshed,
        fresh_folder(folder / "index"),
        config=InfluenceConfig.best(),  # for few rows: what an index of 100 of them takes, does not matter
        processing_class=tokenizer,
    )
    queries = [
        {"prompt": QUESTION.format(thing), "chosen": f" {now}", "rejected": f" {was}"} for thing, was, now in CHANGED
    ]
    result = index.attribute(after, queries, top_k=top_k)

    models = {"before": before, "after": after}
    said = {name: answers(model, tokenizer, [query["prompt"] for query in queries]) for name, model in models.items()}
    figures = []
    for number, (query, (thing, _, _)) in enumerate(zip(queries, CHANGED, strict=True)):
        rows = result.indices[number].tolist()
        preferred = {
            name: log_prob(model, tokenizer, query["prompt"], query["chosen"])
            - log_prob(model, tokenizer, query["prompt"], query["rejected"])
            for name, model in models.items()
        }
        figures.append(
            {
                "thing": thing,
                "said": {name: texts[number].strip() for name, texts in said.items()},
                "preferred": preferred,
                "first": refreshed[rows[0]]["text"],
                "hits": sum(refreshed[row]["thing"] == thing for row in rows),
            }
        )

    print(f"{len(refreshed)} rows of refreshed data, {len(WORDINGS)} of each fact")
    show(figures, top_k)
    draw(figures, folder / "checkpoints-compared.png")
    result.save_html(folder / "changes.html")
    print(f"The rows behind each change: {folder / 'changes.html'}")
    return figures


def show(figures: list[dict[str, Any]], top_k: int) -> None:
    table = Table(title="What changed, and why", title_justify="left", expand=True)
    for column in ("asked about", "before", "after", "row named first", f"of the first {top_k}"):
        table.add_column(column, justify="right" if column.startswith("of the first") else "left")
    for figure in figures:
        said = figure["said"]
        shown = (said["before"], said["after"], figure["first"], str(figure["hits"]))
        table.add_row(figure["thing"], *shown)
    Console().print(table, markup=False)


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """How much each model prefers the new answer to the old one, a line for each question."""
    drawn, (panel,) = pictures.figure(1, height=0.42 * len(figures) + 1.3)
    marks = {
        "before": ("before", pictures.GREY, "o"),
        "after": ("after the refreshed data", pictures.GREEN, "o"),
    }
    for place, figure in enumerate(figures):
        values = figure["preferred"]
        panel.plot([values["before"], values["after"]], [place, place], color="0.85", linewidth=3, zorder=1)
    for name, (label, colour, marker) in marks.items():
        values = [figure["preferred"][name] for figure in figures]
        panel.scatter(values, range(len(figures)), color=colour, marker=marker, s=46, label=label, zorder=2)
    panel.axvline(0, color="0.5", linewidth=0.8)
    labels = [f"{thing}: {was} or {now}" for thing, was, now in CHANGED]
    panel.set_yticks(range(len(figures)), labels)
    panel.invert_yaxis()
    panel.set_xlabel("log p(new answer) - log p(old answer), nats")
    panel.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.2, 1.0), frameon=False)
    pictures.save(drawn, path)


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoints-output"))
