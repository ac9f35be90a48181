"""Flipped preference pairs, found in the index of a DPO training with LoRA.

    python -m benchmarks.preferences

400 pairs: a prompt of WikiText-2, its real continuation (chosen), and the same words in random order (rejected); of a
tenth the two sides are swapped. A small Llama, pre-trained on the other file, learns them by DPO with LoRA, TRL's
DPOTrainer, the model without its adapter as reference. `InfluenceCallback` indexes the pairs at the end. Then, as
AUROC (0.5 is chance):

- self-influence: high for a pair that contradicts the others;
- clean queries: minus the mean score for 40 clean pairs that nobody trained on, each measured by its difference
  log p(chosen) - log p(rejected);
- the pair's DPO loss after the training, which needs no index: the floor.

Writes benchmarks/results/preferences.json.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.evaluation.mislabel_detection import mislabel_detection
from lorif_hf.storage.examples import read_column
from lorif_hf.storage.store import LocalStore

from .lora import LoraBed
from .machine import load, machine
from .quality import RESULTS


PAIRS, QUERIES, FLIPPED = 400, 40, 0.1
PROMPT, COMPLETION = 12, 12  # words
RANK = 8
EPOCHS, LEARNING_RATE, BATCH, BETA = 2, 1e-3, 16, 0.1


def pairs(bed: LoraBed, seed: int) -> tuple[Dataset, Dataset, list[bool]]:
    """400 training pairs, 40 clean ones, and which of the training pairs are flipped."""
    draw = random.Random(seed)
    words = (bed.texts.data / "test.txt").read_text(encoding="utf-8").split()
    starts = draw.sample(range(0, len(words) - PROMPT - COMPLETION, PROMPT + COMPLETION), PAIRS + QUERIES)
    rows = []
    for start in starts:
        real = words[start + PROMPT : start + PROMPT + COMPLETION]
        mixed = draw.sample(real, len(real))
        sides = (f" {' '.join(side)}" for side in (real, mixed))
        rows.append((" ".join(words[start : start + PROMPT]), *sides))
    wrong = set(draw.sample(range(PAIRS), round(FLIPPED * PAIRS)))
    flipped = [row in wrong for row in range(PAIRS)]
    train = [
        (prompt, rejected, chosen) if flip else (prompt, chosen, rejected)
        for (prompt, chosen, rejected), flip in zip(rows, flipped, strict=False)
    ]
    names = ("prompt", "chosen", "rejected")
    trained, clean = (
        Dataset.from_list([dict(zip(names, row, strict=True)) for row in part]) for part in (train, rows[PAIRS:])
    )
    return trained, clean, flipped


def make_trainer(bed: LoraBed, train: Dataset, folder: Path, seed: int) -> DPOTrainer:
    """The training whose rows are indexed."""
    args = DPOConfig(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        beta=BETA,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    set_seed(seed)  # of the adapters, which are drawn before the Trainer seeds
    return DPOTrainer(
        model=bed.base(),
        args=args,
        train_dataset=train,
        processing_class=bed.tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def measure(bed: LoraBed, seed: int, configs: dict[str, InfluenceConfig], folder: Path) -> dict[str, Any]:
    """Train once with this seed; every config has a callback of its own."""
    train, clean, flipped = pairs(bed, seed)
    trainer = make_trainer(bed, train, folder / "trainer", seed)
    callbacks = {
        name: InfluenceCallback(folder / f"index-{number}", trainer=trainer, config=config, raise_errors=True)
        for number, (name, config) in enumerate(configs.items())
    }
    for callback in callbacks.values():
        trainer.add_callback(callback)
    start = time.perf_counter()
    trainer.train()
    result: dict[str, Any] = {"seconds": time.perf_counter() - start, "rows": {}}
    for name, callback in callbacks.items():
        index = callback.index
        scores = index.scores(trainer.model, clean).mean(dim=0)
        result["rows"][name] = {
            "bytes": index.bytes_per_example,
            "coverage": index.coverage.share,
            "self_influence": mislabel_detection(index.self_influence(), flipped).auroc,
            "clean_queries": mislabel_detection(-scores, flipped).auroc,
        }
        losses = read_column(LocalStore(index.path), index.manifest, "loss")
        result["loss"] = mislabel_detection(losses, flipped).auroc
        result["mean_loss"] = float(np.mean(losses))
    return result


CONFIGS = {
    "default": InfluenceConfig(),
    "not whitened, c = 3, 1 bit": InfluenceConfig(whitening="none", curvature="none"),
}


def main(
    folder: Annotated[Path, typer.Option(help="As of benchmarks.quality: the base is that of its bed lora.")] = Path(
        "benchmark-output"
    ),
    seeds: Annotated[int, typer.Option(help="Trainings, each with pairs, flips and adapters of its own.")] = 3,
    first: Annotated[int, typer.Option(help="The first seed; those of other seeds are kept.")] = 0,
) -> None:
    bed, path = LoraBed(folder / "lora"), RESULTS / "preferences.json"
    for seed in range(first, first + seeds):
        with tempfile.TemporaryDirectory() as scratch:
            training = measure(bed, seed, CONFIGS, Path(scratch))
        Console().print(training)
        results = json.loads(path.read_text()) if path.exists() else {"trainings": {}}
        results |= {
            "machine": machine(),
            "load": load(),
            "pairs": PAIRS,
            "flipped": round(FLIPPED * PAIRS),
            "queries": QUERIES,
            "epochs": EPOCHS,
        }
        results["trainings"][str(seed)] = training
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
