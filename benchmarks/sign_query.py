"""Few queries of an index of signs (the default: three pairs at a bit a number): looked up beside multiplied.

    python -m benchmarks.query --signs

The default's scores of 100,000 rows, 24 layers of 48 x 48, by tables of what each byte adds and by products with the
unpacked signs, in turns in one process; medians of the process's CPU seconds, which other processes disturb least, and
of seconds.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lorif_hf import InfluenceConfig
from lorif_hf.codecs import codec_of
from lorif_hf.querying.scan import Scan, every_score

from .machine import load, machine


QUERIES, COUNT, REPEATS = (1,), 100_000, 5


class Multiplied(Scan):
    """A scan that does not say how many rows there are, so that no table is made."""

    def _add(self, scores: Any, entry: Any, parts: Any, rows: slice) -> None:
        groups = self.groups[entry.name]
        self.codec.add_scores(scores, groups, parts[entry.name], entry.d1, entry.d2, self.workspace, rows.start)


def measure(folder: Path | None) -> dict[str, Any]:
    """CPU seconds and seconds of both ways, at each Q and number of threads."""
    from .query import ENTRIES, draw_queries, opened, whole, write

    config, rows, threads = InfluenceConfig(), [], torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        write(Path(name), config, COUNT)
        reader = opened(Path(name), config)
        for workers in sorted({1, min(2, threads)}):
            torch.set_num_threads(workers)
            for queries in QUERIES:
                groups = whole(draw_queries(queries))
                scores = {kind: torch.empty(queries, COUNT) for kind in (Scan, Multiplied)}
                times: dict[Any, list[tuple[float, float]]] = {kind: [] for kind in scores}
                for _ in range(REPEATS + 1):
                    for kind, into in scores.items():
                        begun = time.process_time(), time.perf_counter()
                        every_score(kind(queries, groups, reader, ENTRIES, codec_of(config)), into)
                        times[kind].append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
                row: dict[str, Any] = {"threads": workers, "queries": queries}
                for kind, key in ((Multiplied, "multiplied"), (Scan, "looked_up")):
                    cpu, seconds = (statistics.median(values[1:]) for values in zip(*times[kind], strict=True))
                    row |= {f"{key}_cpu": cpu, f"{key}_seconds": seconds}
                off = scores[Scan] - scores[Multiplied]
                rows.append({**row, "relative_difference": float(off.norm() / scores[Multiplied].norm())})
        torch.set_num_threads(threads)
    return {"machine": machine(), "load": load(), "examples": COUNT, "rows": rows}


def show(results: dict[str, Any]) -> None:
    heads = ("threads", "Q", "multiplied, CPU s", "looked up, CPU s", "ratio", "ratio of seconds", "difference")
    table = Table(*heads, title=f"{results['machine']}, load {results['load']}")
    for row in results["rows"]:
        ratio, of_seconds = (row[f"looked_up_{unit}"] / row[f"multiplied_{unit}"] for unit in ("cpu", "seconds"))
        times = f"{row['multiplied_cpu']:.3f}", f"{row['looked_up_cpu']:.3f}", f"{ratio:.2f}", f"{of_seconds:.2f}"
        table.add_row(str(row["threads"]), str(row["queries"]), *times, f"{row['relative_difference']:.0e}")
    Console().print(table)


def run(folder: Path | None, path: Path) -> None:
    """Measure, print and put beside what the file holds."""
    saved = json.loads(path.read_text()) if path.exists() else {}
    saved["signs"] = measure(folder)
    path.write_text(json.dumps(saved, indent=2) + "\n")
    show(saved["signs"])
