"""What wide layers cost beside training: a build and queries against plain passes of the same rows, in one run.

    python -m benchmarks.wide              # GPT-2 124M's shape; some minutes on two quiet cores
    python -m benchmarks.wide --block      # and one block of a 7B Llama, 4,096 and 11,008 wide
    python -m benchmarks.wide --tiny       # whether it runs, not how fast

Random weights, 32 rows of 128 tokens, the default config. A plain pass is forward and backward with the gradients of
all weights, in batches of eight, as a training step does it. Every measurement has a process of its own, so that its
peak memory is its own, and measures its plain passes itself, before and after, or in turns with what stands beside
them. Ratios are of wall-clock time, medians over the repeats, and once more of CPU time, which other processes on the
machine change less.
"""

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.plan import plan_build

from .machine import load, machine
from .quality import RESULTS
from .recording import make


BATCH, QUERIES, K = 8, 16, 10
GPT2 = (768, 12, 50257, 128, BATCH, 4)  # what `recording.make` takes; the last two: rows of a batch, batches
TINY = (32, 2, 64, 16, BATCH, 4)
BLOCK, TINY_BLOCK = (4096, 11008, 64, 128), (32, 80, 16, 8)  # hidden, intermediate, rows, tokens
GIB = 2**30

Times = dict[str, float]
"""Of some work: seconds on the wall, and of all threads on a processor."""


def timed(work: Callable[[], Any]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def median(times: list[Times]) -> Times:
    return {name: statistics.median(row[name] for row in times) for name in times[0]}


def ratios(times: Times, plain: Times) -> Times:
    cpu = times["cpu_seconds"] / plain["cpu_seconds"]
    return {"to_plain": times["seconds"] / plain["seconds"], "to_plain_cpu": cpu}


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def model_and_rows(tiny: bool, block: bool) -> tuple[Any, Dataset]:
    if not block:
        return make(*(TINY if tiny else GPT2))
    hidden, intermediate, rows, length = TINY_BLOCK if tiny else BLOCK
    set_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=max(1, hidden // 128),
        max_position_embeddings=length,
    )
    tokens = torch.randint(1, 1000, (rows, length)).tolist()
    return LlamaForCausalLM(config), Dataset.from_dict({"input_ids": tokens, "labels": tokens})


def plain_pass(model: Any, rows: Dataset) -> Times:
    """A forward and backward pass of the rows, batch by batch, with the gradients of all weights."""

    def work() -> None:
        for first in range(0, len(rows), BATCH):
            columns = rows[first : first + BATCH]
            model(**{name: torch.tensor(columns[name]) for name in ("input_ids", "labels")}).loss.backward()
            model.zero_grad()

    model.train()
    model.requires_grad_(True)
    times = timed(work)
    model.zero_grad(set_to_none=True)
    return times


def whole_build(model: Any, rows: Dataset, folder: Path, repeats: int) -> dict[str, Any]:
    """`InfluenceIndex.build` as people call it, the check of the first rows included."""
    plain_pass(model, rows.select(range(BATCH)))
    plain, built = [plain_pass(model, rows)], []
    for repeat in range(repeats):
        path = folder / f"index-{repeat}"
        built.append(timed(lambda: InfluenceIndex.build(model, rows, path, batch_size=BATCH)))  # noqa: B023
        plain.append(plain_pass(model, rows))
    size = sum(file.stat().st_size for file in (folder / "index-0").rglob("*") if file.is_file())
    fixed = sum(file.stat().st_size for file in (folder / "index-0" / "curvature").rglob("*"))
    build, beside = median(built), median(plain)
    return {**build, "plain": beside, **ratios(build, beside), "bytes": size, "fixed_bytes": fixed}


def phases(model: Any, rows: Dataset, folder: Path, repeats: int) -> dict[str, Any]:
    """A build without the check, phase by phase. Where the moments end and their roots begin is told by when the
    model is called: once a batch."""
    plain_pass(model, rows.select(range(BATCH)))
    plain, runs = [plain_pass(model, rows)], []
    for repeat in range(repeats):
        runs.append(_phases(model, rows, folder / f"phases-{repeat}"))
        plain.append(plain_pass(model, rows))
    beside = median(plain)
    by_phase = {name: median([run[name] for run in runs]) for name in runs[0]}
    return {
        "plain": beside,
        "phases": {name: {**times, **ratios(times, beside)} for name, times in by_phase.items()},
    }


def _phases(model: Any, rows: Dataset, path: Path) -> dict[str, Times]:
    starts: list[tuple[float, float]] = []
    handle = model.register_forward_pre_hook(lambda *_: starts.append((time.perf_counter(), time.process_time())))
    kept: dict[str, Times] = {}
    options = BuildOptions(BATCH, check=False)

    def whole() -> None:
        planned: list[Any] = []
        config = InfluenceConfig()
        kept["plan"] = timed(lambda: planned.append(plan_build(model, rows, path, config, options)))
        builder = planned[0]
        for name in ("prepare", "gather", "record"):
            setattr(builder, name, _noting(kept, name, getattr(builder, name)))
        InfluenceIndex.from_builder(builder)

    try:
        total = timed(whole)
    finally:
        handle.remove()
    first = starts[: len(starts) - -(-len(rows) // BATCH)]  # the batches before those of the recording
    kept["roots"] = kept.pop("gather")
    kept["moments"] = {"seconds": 0.0, "cpu_seconds": 0.0}
    for place, name in enumerate(("seconds", "cpu_seconds")):
        clock = [start[place] for start in first]
        if len(clock) > 1:
            each = statistics.median(later - earlier for earlier, later in itertools.pairwise(clock))
            kept["moments"][name] = each * len(clock)
            kept["roots"][name] -= each * len(clock)
    kept["finish"] = {name: total[name] - sum(times[name] for times in kept.values()) for name in total}
    return {name: kept[name] for name in ("plan", "prepare", "moments", "roots", "record", "finish")} | {"all": total}


def _noting(kept: dict[str, Times], name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any) -> None:
        kept[name] = timed(lambda: work(*given))

    return noted


def memory(model: Any, rows: Dataset, folder: Path, repeats: int) -> dict[str, Any]:
    """The most that a process holds which builds an index and does nothing else, and what it holds before."""
    before = peak_gib()
    times = timed(lambda: InfluenceIndex.build(model, rows, folder / "index", batch_size=BATCH))
    return {"model_gib": before, "peak_gib": peak_gib(), **times}


def queries(model: Any, rows: Dataset, folder: Path, repeats: int) -> dict[str, Any]:
    """The first query of a process on an index that another made; further ones, and 16 at once, in turns with plain
    passes of them."""
    alone, many = rows.select([0]), rows.select(range(QUERIES))
    asked = {"1 query": alone, f"{QUERIES} queries": many}
    plain_pass(model, many)
    plain: dict[str, list[Times]] = {name: [plain_pass(model, some)] for name, some in asked.items()}
    model.eval()
    opened: list[InfluenceIndex] = []
    first = timed(lambda: opened.append(InfluenceIndex.from_pretrained(folder / "index")))
    loading = first["seconds"]
    answered = timed(lambda: opened[0].attribute(model, alone, top_k=K, batch_size=BATCH))
    first = {name: first[name] + answered[name] for name in first}
    times: dict[str, list[Times]] = {name: [] for name in asked}
    for _ in range(repeats):
        for name, some in asked.items():
            plain[name].append(plain_pass(model, some))
            model.eval()
            times[name].append(timed(lambda: opened[0].attribute(model, some, top_k=K, batch_size=BATCH)))  # noqa: B023
    beside = {name: median(some) for name, some in plain.items()}
    made = {"the first query": (first, beside["1 query"])}
    made |= {name: (median(some), beside[name]) for name, some in times.items()}
    table = {name: {**took, "plain": plain_of, **ratios(took, plain_of)} for name, (took, plain_of) in made.items()}
    return {"queries": table, "loading_seconds": loading, "peak_gib": peak_gib()}


PARTS = {"build": whole_build, "phases": phases, "memory": memory, "queries": queries}


def run_part(part: str, tiny: bool, block: bool, folder: Path, repeats: int) -> dict[str, Any]:
    """A part in a process of its own; where it fails, its error."""
    command = [sys.executable, "-m", "benchmarks.wide", "--part", part, "--folder", str(folder)]
    command += ["--repeats", str(repeats), *(["--tiny"] if tiny else []), *(["--block"] if block else [])]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if ran.returncode:
        return {"error": (ran.stderr.strip() or f"status {ran.returncode}")[-2000:]}
    made: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return made


def show(results: dict[str, Any]) -> None:
    title = f"{results['machine']}; load {results['load']}"
    table = Table("", "what", "seconds", "plain", "to plain", "to plain, CPU time", title=title)
    for name, parts in results["models"].items():
        rows = {"build": parts.get("build", {})}
        made = parts.get("phases", {})
        rows |= {f"  {phase}": {**row, "plain": made["plain"]} for phase, row in made.get("phases", {}).items()}
        rows |= parts.get("queries", {}).get("queries", {})
        for what, row in rows.items():
            if "plain" not in row:
                continue
            figures = row["seconds"], row["plain"]["seconds"], row["to_plain"], row["to_plain_cpu"]
            table.add_row(name, what, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)
    for name, parts in results["models"].items():
        for part, row in parts.items():
            if "error" in row:
                Console().print(f"{name}, {part}: failed\n{row['error']}", markup=False)
        if "peak_gib" in parts.get("memory", {}):
            row = parts["memory"]
            of_it = f"{row['model_gib']:.2f} of it before the build"
            Console().print(f"{name}: the build's process peaks at {row['peak_gib']:.2f} GiB, {of_it}.")
        if "bytes" in parts.get("build", {}):
            size, fixed = parts["build"]["bytes"], parts["build"]["fixed_bytes"]
            Console().print(f"{name}: {size / 1e6:,.1f} MB on disk, {fixed / 1e6:,.1f} MB of them the curvature.")


def main(
    repeats: Annotated[int, typer.Option(help="Of each measurement but that of memory.", min=1)] = 5,
    block: Annotated[bool, typer.Option(help="One block of a 7B Llama as well.")] = False,
    only: Annotated[str, typer.Option(help="Only the part of this name: build, phases, memory or queries.")] = "",
    tiny: Annotated[bool, typer.Option(help="Tiny models: whether it runs, not how fast.")] = False,
    results: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "wide.json",
    part: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path | None, typer.Option(help="Where indices are written, and deleted again.")] = None,
) -> None:
    """Measure and print the table."""
    disable_progress_bars("lorif_hf")
    if part:
        assert folder is not None
        made = PARTS[part](*model_and_rows(tiny, block), folder, repeats)
        print(json.dumps(made))
        return
    saved: dict[str, Any] = {"machine": machine(), "threads": torch.get_num_threads(), "repeats": repeats}
    # A part alone goes beside those that are there.
    saved["models"] = json.loads(results.read_text())["models"] if only and results.exists() else {}
    names = {"GPT-2 124M": False, **({"one 7B block": True} if block else {})}
    for name, of_block in names.items():
        saved["models"].setdefault(name, {})
        with tempfile.TemporaryDirectory(dir=folder) as place:
            # The index of "memory" is the one that "queries" opens.
            for which in ("memory", "queries", "build", "phases"):
                if only in (which, "") or (which, only) == ("memory", "queries"):
                    made = run_part(which, tiny, of_block, Path(place), repeats)
                    saved["models"][name][which] = made
                    saved["load"] = load()
                    results.parent.mkdir(exist_ok=True)
                    results.write_text(json.dumps(saved, indent=2) + "\n")
    show(saved)


if __name__ == "__main__":
    typer.run(main)
