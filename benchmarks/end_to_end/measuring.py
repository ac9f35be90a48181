"""What every runner shares: the bed (model and rows) read from a folder, and how a phase is timed.

A runner is called twice, each time in a process of its own, so that peak memory is that of one phase and queries meet
nothing that the build left in memory:

    python -m benchmarks.end_to_end.runners.NAME build BED STORE RESULT.json --repeats 5 [--variant V]
    python -m benchmarks.end_to_end.runners.NAME query BED STORE RESULT.json --repeats 5 [--variant V]

Imports only what every environment has.
"""

import argparse
import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


LONG = 20.0  # seconds after which a build is not repeated once more


@dataclass(frozen=True)
class Bed:
    """Model, rows and sizes, as `prepare.py` wrote them."""

    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "bed.json").read_text())

    @property
    def rank(self) -> int:
        """What each side of every tracked layer is projected to: I / f = O / f, all layers being square."""
        return self.settings["rank"]

    @property
    def batch_size(self) -> int:
        return self.settings["batch_size"]

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def model(self) -> Any:
        """The model, float32, in eval mode."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.model_folder, dtype=torch.float32).eval()

    def rows(self, name: str) -> torch.Tensor:
        """`"train"` (N, block) or `"queries"` (Q, block): token ids of full rows; the labels are the ids."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))


def tracked(model: nn.Module) -> list[str]:
    """The layers that every system tracks: all linear ones but the output head."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


def summed_loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the batch and its tokens, in nats."""
    logits = model(input_ids=rows).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def size(path: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def peak_memory() -> int:
    """The most resident memory that this process has had, in bytes; mapped file pages count.

    VmHWM where there is one: ru_maxrss of a new process starts at what its parent had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(
    build: Callable[[Bed, Any, Path, str], dict[str, Any] | None],
    open_index: Callable[[Bed, Any, Path, str], Any],
    query: Callable[[Any, torch.Tensor], np.ndarray | torch.Tensor],
    *,
    fixed: tuple[str, ...] = (),
) -> None:
    """A runner's command line.

    Args:
        build: (bed, model, empty folder, variant): writes into the folder what queries need; what it returns goes into
            the result and stands above what is measured here.
        open_index: (bed, model, that folder, variant) in a fresh process; done and timed once.
        query: (what was opened, token rows (Q, block)) gives the scores (Q, N), positive a proponent. Timed after a
            warm-up, for all queries at once and for one alone.
        fixed: names of folders and files in the store whose size does not grow with N.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=["build", "query"])
    for name in ("bed", "store", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variant", default="")
    given = parser.parse_args()
    bed = Bed(given.bed)
    torch.manual_seed(0)
    if given.phase == "build":
        result = _timed_build(build, bed, given, fixed)
    else:
        result = _timed_query(open_index, query, bed, given)
    result["peak_memory"] = peak_memory()
    given.result.write_text(json.dumps(result, indent=2) + "\n")


def _timed_build(build: Any, bed: Bed, given: argparse.Namespace, fixed: tuple[str, ...]) -> dict[str, Any]:
    seconds: list[float] = []
    while len(seconds) < given.repeats and sum(seconds) < LONG:
        shutil.rmtree(given.store, ignore_errors=True)
        given.store.mkdir(parents=True)
        model = bed.model()  # anew, since some systems change it
        start = time.perf_counter()
        more = build(bed, model, given.store, given.variant) or {}
        seconds.append(time.perf_counter() - start)
    stored = size(given.store)
    constant = sum(
        path.stat().st_size if path.is_file() else size(path)
        for path in (given.store / name for name in fixed)
        if path.exists()
    )
    return {
        "build_seconds": statistics.median(seconds),
        "build_times": seconds,
        "bytes": stored,
        "bytes_fixed": constant,
        **more,
    }


def _timed_query(open_index: Any, query: Any, bed: Bed, given: argparse.Namespace) -> dict[str, Any]:
    model, rows = bed.model(), bed.rows("queries")
    start = time.perf_counter()
    opened = open_index(bed, model, given.store, given.variant)
    open_seconds = time.perf_counter() - start
    result: dict[str, Any] = {}
    for name, asked in (("query", rows), ("one_query", rows[:1])):
        seconds: list[float] = []
        for _ in range(1 + given.repeats):
            start = time.perf_counter()
            scores = query(opened, asked)
            seconds.append(time.perf_counter() - start)
        result |= {
            f"first_{name}_seconds": seconds[0],
            f"{name}_seconds": statistics.median(seconds[1:]),
            f"{name}_times": seconds[1:],
        }
        if name == "query":
            scores = torch.as_tensor(scores).detach().float().numpy()
            np.save(given.result.with_suffix(".npy"), scores)
            result["scores_shape"] = list(scores.shape)
    return {"open_seconds": open_seconds, **result}
