"""Index a training set and ask it 100 queries: ours, dattri's LoGra, kronfluence's EK-FAC, LogIX and bergson.

    python -m benchmarks.end_to_end                              # 2,000 rows of WikiText-2, a Llama of 14 layers
    python -m benchmarks.end_to_end --examples 200 --only dattri # a try: these rows anew, the others as they were
    python -m benchmarks.end_to_end --examples 8000 --only plain,ours-default-f,dattri-disk --results \\
        benchmarks/results/end_to_end_8000.json                  # where scoring outweighs the queries' own passes

Each system runs in a virtual environment of its own (made in --folder at the first use, with this project's pins), on
the same model, rows and layers, in float32 on the CPU, in batches of the same size. Building and querying are two
processes. A build is repeated up to --repeats times, until 20 seconds have gone. All queries at once, and one alone,
are scored to warm up and then --repeats times, from tokens to the (Q, N) scores, with the model loaded and the index
open. "first s" is what a fresh process with the model loaded waits for: opening and the first scores.

The row "plain backward" is a forward and backward pass of the same rows and nothing else: what every system does with
the queries before it scores anything, and with the training rows before it stores anything. Bytes are those of the
files that a system leaves in its folder, "per row" those that grow with the rows. Peak memory is resident memory,
mapped file pages counted. Spearman is the mean rank correlation with EK-FAC's scores. What cannot be installed or run
is in the table with its error. Writes benchmarks/results/end_to_end.json.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from ..machine import machine
from ..references import spearman
from .environments import ROOT, SYSTEMS, InstallError, python_of, version_of
from .prepare import prepare


RESULTS = ROOT / "benchmarks" / "results" / "end_to_end.json"
BASE = "LoRIF as published, f = {f}"  # ratios are to this row
REFERENCE = "kronfluence EK-FAC"  # rank correlations are with this row
FLOOR = "plain backward"
# Row of the table: (runner, variant).
ROWS = {
    FLOOR: ("plain", ""),
    BASE: ("ours", "paper"),
    "default": ("ours", "default"),
    "default at f = {f}": ("ours", "default-f"),
    "our LoGRA, f = {f}": ("ours", "logra"),
    "dattri LoGra, f = {f}, disk": ("dattri", "disk"),
    "dattri LoGra, f = {f}, memory": ("dattri", "memory"),
    REFERENCE: ("kronfluence", ""),
    "LogIX LoGra, f = {f}": ("logix", ""),
    "bergson, f = {f}": ("bergson", ""),
}


def main(
    folder: Annotated[Path, typer.Option(help="Where environments, model and stores are kept.")] = Path(
        "benchmark-output/end_to_end"
    ),
    examples: Annotated[int, typer.Option(help="Training rows.")] = 2000,
    queries: Annotated[int, typer.Option(help="Query rows.")] = 100,
    hidden: Annotated[int, typer.Option(help="Width of every layer; a multiple of 4 --factor.")] = 192,
    layers: Annotated[int, typer.Option(help="Blocks of the model, of 7 tracked layers each.")] = 2,
    factor: Annotated[int, typer.Option(help="f of the projections.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Rows per pass, in every system.")] = 16,
    repeats: Annotated[int, typer.Option(help="Times the queries are scored.")] = 5,
    only: Annotated[
        str, typer.Option(help="Only these runners, or runner-variants such as ours-default-f (comma-separated).")
    ] = "",
    saved: Annotated[Path, typer.Option("--results", help="The JSON file to write.")] = RESULTS,
    keep: Annotated[bool, typer.Option(help="Keep what the systems stored.")] = False,
) -> None:
    folder = folder.resolve()
    bed = prepare(
        folder,
        examples=examples,
        queries=queries,
        hidden=hidden,
        layers=layers,
        factor=factor,
        batch_size=batch_size,
    )
    rows: dict[str, Any] = {}
    chosen = [name for name in only.split(",") if name]
    if chosen and saved.exists():
        before = json.loads(saved.read_text())
        if before["bed"] == bed.settings and before["machine"] == machine():
            rows = before["rows"]
    for title, (runner, variant) in ROWS.items():
        if chosen and not {runner, f"{runner}-{variant}"} & set(chosen):
            continue
        name = title.format(f=factor)
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows[name] = _run(runner, variant, folder, bed.folder, repeats, keep)
        results = {
            "machine": machine(),
            "torch": torch.__version__,
            "bed": bed.settings,
            "repeats": repeats,
            "rows": {known.format(f=factor): rows[key] for known in ROWS if (key := known.format(f=factor)) in rows},
        }
        _compare(results["rows"], BASE.format(f=factor), bed.folder)
        saved.write_text(json.dumps(results, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 160).print(_table(results))


def _run(runner: str, variant: str, folder: Path, bed: Path, repeats: int, keep: bool) -> dict[str, Any]:
    """One row: build and query in fresh processes of the system's own environment."""
    row: dict[str, Any] = {"runner": runner, "variant": variant}
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    python = Path(sys.executable)
    if runner in SYSTEMS:
        system = SYSTEMS[runner]
        environment |= dict(system.environment)
        row |= {"note": system.note} if system.note else {}
        try:
            python = python_of(runner, folder / "venvs")
        except InstallError as error:
            return row | {"error": f"does not install: {error}"}
        row["version"] = version_of(python, system.requirement.split("==")[0])
    name = f"{runner}-{variant}".strip("-")
    store, log = bed / "stores" / name, bed / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    for phase in ("build", "query"):
        result = bed / f"{name}-{phase}.json"
        module = f"benchmarks.end_to_end.runners.{runner}"
        command = [python, "-m", module, phase, bed, store, result, "--repeats", str(repeats), "--variant", variant]
        with log.open("a") as stream:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, check=False
            ).returncode
        if code:
            print(f"{name}: {phase} failed, see {log}", file=sys.stderr)
            return row | {"error": f"{phase} fails: {_last_error(log, code)}"}
        of_phase = json.loads(result.read_text())
        row |= {f"{phase}_peak_memory" if key == "peak_memory" else key: value for key, value in of_phase.items()}
    row["scores"] = f"{name}-query.npy"
    if not keep:
        shutil.rmtree(store)
    return row


def _last_error(log: Path, code: int) -> str:
    """The exception that ended a runner, in one line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line[:1].isalpha() and ("Error" in line or "Exception" in line)]
    return (errors or lines or [f"exit status {code}"])[-1][:300]


RATIOS = ("bytes", "bytes_per_example", "build_seconds", "query_seconds", "one_query_seconds", "query_peak_memory")


def _compare(rows: dict[str, Any], base: str, bed: Path) -> None:
    """Ratios to the base row, from the same run, and rank correlations with the reference."""
    finished = [row for row in rows.values() if "error" not in row]
    scored = [row for row in finished if row["bytes"]]
    for row in scored:
        row["bytes_per_example"] = (row["bytes"] - row["bytes_fixed"]) / row["scores_shape"][1]
    ours, reference = rows.get(base, {}), rows.get(REFERENCE, {})
    for row in finished:
        row["ratios"] = {key: row[key] / ours[key] for key in RATIOS if ours.get(key) and key in row}
    for row in scored:
        row.pop("spearman", None)
        if "scores" in reference:
            row["spearman"] = spearman(np.load(bed / row["scores"]), np.load(bed / reference["scores"]))


def _table(results: dict[str, Any]) -> Table:
    bed = results["bed"]
    title = (
        f"{bed['examples']:,} rows of {bed['block']} tokens, {bed['queries']} queries, {7 * bed['layers']} layers of "
        f"{bed['hidden']} x {bed['hidden']}, D = {bed['rank'] ** 2:,} at f = {bed['projection_factor']}\n"
        f"{results['machine']}, torch {results['torch']}; (ratios to the first row)"
    )
    table = Table(title=title)
    table.add_column("system")
    columns = ("disk MB", "bytes per row", "build s", f"{bed['queries']} queries s", "1 query s", "first s")
    columns = (*columns, "build MiB", "query MiB", "Spearman")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in results["rows"].items():
        label = f"{name} ({row['version']})" if "version" in row else name
        if "error" in row:
            table.add_row(f"{label}: {row['error']}", *["-"] * len(columns))
            continue
        table.add_row(
            label,
            _cell(row, "bytes", 1e6, 2) + (f" in {row['where']}" if "where" in row else ""),
            _cell(row, "bytes_per_example", 1, 0),
            _cell(row, "build_seconds", 1, 2),
            _cell(row, "query_seconds", 1, 3),
            _cell(row, "one_query_seconds", 1, 3),
            f"{row['open_seconds'] + row['first_query_seconds']:,.1f}",
            _cell(row, "build_peak_memory", 2**20, 0),
            _cell(row, "query_peak_memory", 2**20, 0),
            f"{row['spearman']:.3f}" if "spearman" in row else "-",
        )
    return table


def _cell(row: dict[str, Any], key: str, unit: float, digits: int) -> str:
    """A number and, in brackets, its ratio to ours."""
    if not row.get(key):
        return "-"
    ratio = row["ratios"].get(key)
    bracket = "" if ratio is None else f" ({ratio:.2g})" if ratio < 10 else f" ({ratio:,.0f})"
    return f"{row[key] / unit:,.{digits}f}{bracket}"


if __name__ == "__main__":
    typer.run(main)
