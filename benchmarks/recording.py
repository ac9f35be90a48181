"""What the recording pass costs, against a plain forward and backward pass of the same model and batches.

    python -m benchmarks.recording

The plain pass computes weight gradients, as every training step does; the recording pass computes none, but projects,
whitens, factorises and writes. Both collate the same rows in the same batches. Ratios are medians over repeats that
alternate between the two. What a whitened index needs once, whatever the number of rows (second moments of
`whitening_samples` rows and their inverse roots), is not in the ratio; its seconds are in the JSON.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from lorif_hf import InfluenceConfig
from lorif_hf.building.builder import IndexBuilder
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.plan import plan_build

from .machine import machine, peak_memory
from .quality import RESULTS


CONFIGS: dict[str, Callable[[], InfluenceConfig]] = {
    "default": InfluenceConfig,
    "paper()": InfluenceConfig.paper,
}
# width, layers, vocabulary, tokens per row, rows per batch, batches
MODELS = {
    "the demo's GPT-2: width 128, 3 layers, 96 tokens": (128, 3, 2048, 96, 32, 32),
    "GPT-2 of width 768, 4 layers, 512 tokens": (768, 4, 8192, 512, 2, 4),
}


def make(width: int, layers: int, vocabulary: int, length: int, batch: int, batches: int) -> tuple[Any, Dataset]:
    """A GPT-2 from its config, and rows of random tokens."""
    set_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=max(4, width // 64),
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    tokens = torch.randint(0, vocabulary, (batch * batches, length)).tolist()
    model = GPT2LMHeadModel(config)
    if torch.cuda.is_available():
        model.cuda()
    return model, Dataset.from_dict({"input_ids": tokens, "labels": tokens})


def plain_pass(model: Any, builder: IndexBuilder, batch_size: int) -> float:
    """Seconds of a forward and backward pass over all rows, weight gradients and all."""
    model.train()
    device = next(model.parameters()).device
    start = time.perf_counter()
    for first in range(0, builder.rows.count, batch_size):
        batch = builder.rows.batch(range(first, first + batch_size))
        model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()
        model.zero_grad()
    _synchronize()
    return time.perf_counter() - start


def recording_pass(builder: IndexBuilder) -> float:
    """Seconds of recording and writing all rows, the second moments being known."""
    shutil.rmtree(builder.folder / "factors", ignore_errors=True)
    for recorded in builder.staging.glob("rows-*"):
        recorded.unlink()
    start = time.perf_counter()
    builder.record(lambda shard: None)
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(
    repeats: Annotated[int, typer.Option(help="Of each pass; medians are shown.")] = 5,
    only: Annotated[str, typer.Option(help="Only the models whose name contains this.")] = "",
) -> None:
    rows = []
    for title, (width, layers, vocabulary, length, batch, batches) in MODELS.items():
        if only not in title:
            continue
        model, dataset = make(width, layers, vocabulary, length, batch, batches)
        for name, config in CONFIGS.items():
            with tempfile.TemporaryDirectory() as folder:
                builder = plan_build(model, dataset, Path(folder) / "index", config(), BuildOptions(batch))
                start = time.perf_counter()
                builder.gather()
                moments = time.perf_counter() - start
                plain_pass(model, builder, batch)
                recording_pass(builder)
                plain, recorded = [], []
                for _ in range(repeats):
                    plain.append(plain_pass(model, builder, batch))
                    recorded.append(recording_pass(builder))
            row = {
                "model": title,
                "config": name,
                "examples_per_second": len(dataset) / statistics.median(recorded),
                "ratio_to_plain": statistics.median(b / a for a, b in zip(plain, recorded, strict=True)),
                "plain_seconds": statistics.median(plain),
                "moments_seconds": moments,
                "examples": len(dataset),
                "peak_memory": peak_memory(),
            }
            rows.append(row)
            Console().print(row)
    table = Table("model", "config", "examples/s", "recording / plain", "peak", title=machine())
    for row in rows:
        table.add_row(
            row["model"],
            row["config"],
            f"{row['examples_per_second']:.1f}",
            f"{row['ratio_to_plain']:.2f}",
            f"{row['peak_memory'] / 2**30:.2f} GiB",
        )
    Console().print(table)
    (RESULTS / "recording.json").write_text(
        json.dumps({"machine": machine(), "repeats": repeats, "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
