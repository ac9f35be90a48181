"""How well each index predicts retraining: linear datamodeling score against bytes per example.

    python -m benchmarks.quality wikitext      # (a) a small GPT-2 fine-tuned on WikiText-2
    python -m benchmarks.quality mislabeled    # (b) a classifier, 10% of whose labels are flipped
    python -m benchmarks.quality lora --subsets 40 --processes 1    # (c) LoRA adapters of rank 8 on a small Llama

Makes the test bed and its retrain bank (or finds them made in --folder), builds every index of the table, and writes
benchmarks/results/<bed>.json. `python -m benchmarks.report` makes the tables and the plot of it.
"""

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature.encoding import bytes_per_example
from lorif_hf.evaluation.evaluate_index import evaluate_lds
from lorif_hf.evaluation.lds import lds
from lorif_hf.evaluation.mislabel_detection import mislabel_detection
from lorif_hf.evaluation.retraining.retrain import retrain

from . import references


RESULTS = Path(__file__).parent / "results"

OURS = {"whitening": "kronecker", "curvature": "kronecker"}


def published() -> dict[str, InfluenceConfig]:
    """The methods that ours is measured against."""
    return {
        "TRAK, p = 2048": InfluenceConfig.trak(),
        "gradient dot product, f = 4": InfluenceConfig.grad_dot(),
        "gradient cosine, f = 4": InfluenceConfig.grad_cos(),
        "LoGRA, f = 16": InfluenceConfig.logra(projection_factor=16),
        "LoGRA, f = 8": InfluenceConfig.logra(projection_factor=8),
        "LoGRA, f = 4": InfluenceConfig.logra(),
        "LoGRA, f = 4, damping 0.5": InfluenceConfig.logra(damping=0.5),
        "LoGRA, f = 4, damping 2": InfluenceConfig.logra(damping=2.0),
        "LoRIF as published, c = 1": InfluenceConfig.paper(),
        "LoRIF as published, c = 1, damping 2": InfluenceConfig.paper(damping=2.0),
        "LoRIF as published, c = 4": InfluenceConfig.paper(factor_rank=4),
        "LoRIF, c = 1, full query": InfluenceConfig.paper(factorize_query=False),
    }


def ours() -> dict[str, InfluenceConfig]:
    """Our own, over (f, c, bits, whitening)."""
    table = {
        "default": InfluenceConfig(),
        "smallest()": InfluenceConfig.smallest(),
        "best()": InfluenceConfig.best(),
    }
    for factor, rank, bits in [
        (4, 1, 16), (4, 8, 2), (4, 16, 1), (2, 1, 1), (2, 3, 2), (2, 7, 1),
        (1, 2, 1), (1, 4, 1), (1, 8, 1), (1, 16, 1), (1, 2, 2), (1, 8, 2), (1, 1, 16),
    ]:  # fmt: skip
        table[f"whitened, f = {factor}, c = {rank}, {bits} bits"] = InfluenceConfig(
            projection_factor=factor, factor_rank=rank, bits=bits, **OURS
        )
    table["not whitened, f = 1, c = 3, 1 bit"] = InfluenceConfig(
        projection_factor=1, factor_rank=3, bits=1, whitening="none", curvature="none"
    )
    return table


def adapters() -> dict[str, InfluenceConfig]:
    """Our own on LoRA adapters, whose gradients have no more than 8 rows or columns: over c, bits and damping."""
    table = {
        "default": InfluenceConfig(),
        "smallest()": InfluenceConfig.smallest(),
        "best()": InfluenceConfig.best(),
        "whitened, c = 8, 16 bits": InfluenceConfig(factor_rank=8, bits=16, **OURS),
        "not whitened, c = 3, 1 bit": InfluenceConfig(whitening="none", curvature="none"),
        "not whitened, c = 8, 4 bits": InfluenceConfig.best(whitening="none", curvature="none"),
        "not whitened, c = 8, 4 bits, LoGRA's curvature": InfluenceConfig.best(
            whitening="none", curvature="low-rank", curvature_rank=None
        ),
    }
    for damping in (0.01, 1.0, 10.0):
        table[f"default, damping {damping:g}"] = InfluenceConfig(whitening_damping=damping)
        table[f"best(), damping {damping:g}"] = InfluenceConfig.best(whitening_damping=damping)
    return table


def published_for_adapters() -> dict[str, InfluenceConfig]:
    """The methods that ours is measured against; projected, and whole (f = 1), since adapters are small."""
    return {
        "TRAK, p = 2048": InfluenceConfig.trak(),
        "gradient dot product, f = 4": InfluenceConfig.grad_dot(),
        "gradient dot product, f = 1": InfluenceConfig.grad_dot(projection_factor=1),
        "gradient cosine, f = 1": InfluenceConfig.grad_cos(projection_factor=1),
        "LoGRA, f = 4": InfluenceConfig.logra(),
        "LoGRA, f = 2": InfluenceConfig.logra(projection_factor=2),
        "LoGRA, f = 1": InfluenceConfig.logra(projection_factor=1),
        "LoRIF as published, c = 1": InfluenceConfig.paper(),
        "LoRIF as published, c = 1, f = 1": InfluenceConfig.paper(projection_factor=1),
    }


def main(
    bed: Annotated[str, typer.Argument(help="wikitext, mislabeled or lora.")],
    folder: Annotated[Path, typer.Option(help="Where models, bank and indices are kept.")] = Path("benchmark-output"),
    processes: Annotated[int, typer.Option(help="Retrainings at once.")] = 2,
    subsets: Annotated[int, typer.Option(help="Half-subsets; each is retrained with two seeds.")] = 50,
    only: Annotated[str, typer.Option(help="Only the rows whose name contains this; the others are kept.")] = "",
    ekfac: Annotated[bool, typer.Option(help="Run kronfluence's EK-FAC, where it is installed.")] = True,
) -> None:
    began = time.perf_counter()
    made: Any = _bed(bed, folder / bed)
    train, queries = made.split()
    bank = retrain(
        made.make_trainer,
        train,
        queries,
        folder / bed / "bank",
        num_subsets=subsets,
        processing_class=made.tokenizer,
        num_processes=processes,
    )
    model = made.finetuned()
    path = RESULTS / f"{bed}.json"
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    results |= {
        "examples": len(train),
        "queries": len(queries),
        "subsets": subsets,
        "seeds": len(bank.seeds),
        "seed_agreement": bank.seed_agreement(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }

    def record(name: str, bytes_: float | None, result: Any, **more: Any) -> None:
        low, high = result.query_interval
        row = {"bytes": bytes_, "lds": result.mean, "low": low, "high": high, **more}
        results["rows"][name] = row
        Console().print(
            f"{name:45} {bytes_ or 0:>10,.0f} bytes  LDS {result.mean:.3f} ({low:.3f} to {high:.3f})", more
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")

    mine, theirs = (adapters(), published_for_adapters()) if bed == "lora" else (ours(), published())
    rows = {name: config for name, config in (mine | theirs).items() if only in name}
    for name, config in rows.items():
        where = folder / bed / "index"
        shutil.rmtree(where, ignore_errors=True)
        start = time.perf_counter()
        index = InfluenceIndex.build(
            model, train, where, config=config, processing_class=made.tokenizer, batch_size=25
        )
        built = time.perf_counter() - start
        more = {"kind": "ours" if name in mine else "published", "config": config.to_dict(), "build_seconds": built}
        if "flipped" in train.column_names:
            detected = mislabel_detection(index.self_influence(), train["flipped"])
            more["mislabel_auroc"] = detected.auroc
        stored = bytes_per_example(config, index.manifest.modules)
        record(name, stored, evaluate_lds(index, bank, model), **more)
    losses, membership = bank.losses, bank.membership
    if only in "BM25":
        scores = references.bm25(train["text"], queries["text"])
        record("BM25", None, lds(scores, losses, membership), kind="reference")
    # Of adapters, benchmarks.lora_others has dattri-llm's EK-FAC and bergson's.
    if ekfac and bed != "lora" and only in "EK-FAC (kronfluence)" and references.has_kronfluence():
        scores = references.kronfluence_scores(model, train, queries, folder / bed / "kronfluence")
        record("EK-FAC (kronfluence)", None, lds(scores, losses, membership), kind="reference")
    results["seconds"] = time.perf_counter() - began
    path.write_text(json.dumps(results, indent=2) + "\n")


def _bed(name: str, folder: Path) -> Any:
    if name == "wikitext":
        from .wikitext import TestBed

        return TestBed(folder)
    if name == "mislabeled":
        from .mislabeled import MislabeledBed

        return MislabeledBed(folder)
    if name == "lora":
        from .lora import LoraBed

        return LoraBed(folder)
    raise typer.BadParameter(f"{name!r} is no test bed: take wikitext, mislabeled or lora.")


if __name__ == "__main__":
    typer.run(main)
