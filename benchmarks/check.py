"""What the check of the first batch costs, in plain forward and backward passes of one batch.

    python -m benchmarks.check

The check records two or three rows as a trial, and differentiates each of them alone by autograd. It runs once, before
the pass. Ratios are medians over repeats that alternate between the two.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lorif_hf import InfluenceConfig
from lorif_hf.building.builder import IndexBuilder
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.plan import plan_build
from lorif_hf.building.way import WayFinder

from .machine import machine
from .quality import RESULTS
from .recording import MODELS, make, plain_pass


def check(builder: IndexBuilder) -> float:
    """Seconds of the check."""
    finder = WayFinder(
        builder.model,
        builder.rows,
        builder.selection.modules,
        builder.projections,
        builder.config,
    )
    start = time.perf_counter()
    way = finder.find(builder.choice)
    assert way.task.name == "causal-lm" and not way.followed
    return time.perf_counter() - start


def main(repeats: Annotated[int, typer.Option(help="Of each; medians are shown.")] = 7) -> None:
    rows = []
    for title, (width, layers, vocabulary, length, batch, _) in MODELS.items():
        model, dataset = make(width, layers, vocabulary, length, batch, 1)
        with tempfile.TemporaryDirectory() as folder:
            builder = plan_build(model, dataset, Path(folder) / "index", InfluenceConfig(), BuildOptions(batch))
            plain_pass(model, builder, batch)
            check(builder)
            pairs = [(plain_pass(model, builder, batch), check(builder)) for _ in range(repeats)]
        ratio = statistics.median(checked / plain for plain, checked in pairs)
        rows.append({"model": title, "batch": batch, "ratio": ratio})
    table = Table("model", "rows in a batch", "check / plain pass of a batch", title=machine())
    for row in rows:
        table.add_row(row["model"], str(row["batch"]), f"{row['ratio']:.2f}")
    Console().print(table)
    (RESULTS / "check.json").write_text(
        json.dumps({"machine": machine(), "repeats": repeats, "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
