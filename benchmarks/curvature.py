"""Fitting the curvature: the method that the sizes call for against the published five-pass randomised SVD.

    python -m benchmarks.curvature                    # all sizes, five repeats
    python -m benchmarks.curvature --repeats 1 gram   # one of them; the others stay in the JSON file

Synthetic rank-1 factors with a decaying spectrum, from a seed, written as shards and fitted from them as a build does.
Times are medians of one run, the methods in turn. Captured energy is trace(V^T C V) / trace(C), measured by a further
pass. The correlation is that of 16 queries' scores of all examples, H^-1 of each method, averaged over the queries.
Peak memory is that of the process above what it held before.
"""

import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorif_hf import InfluenceConfig
from lorif_hf.algebra import curvature
from lorif_hf.algebra.gradients import BLOCK_NUMBERS, StoredGradients
from lorif_hf.algebra.gram import dual_eigenpairs
from lorif_hf.algebra.planning import plan_fit
from lorif_hf.building.fitting import stored_gradients
from lorif_hf.codecs import codec_of
from lorif_hf.storage.files import file_entry, header_sha256
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore

from . import published_svd
from .machine import machine


RESULTS = Path(__file__).parent / "results"
CASES = {"gram": (20_000, 48, 48, 2048), "dual": (5_000, 192, 192, 1024), "both large": (20_000, 192, 192, 512)}
PUBLISHED = f"published, {published_svd.PASSES} passes"
QUERIES = 16
DAMPING = 0.5
_DECAY = 0.5  # entry j of a factor has standard deviation j^-0.5 in a random basis
_EXACT = 5_000  # largest N whose kernel is decomposed whole, for the best that any method could capture


class Layer:
    """One layer's factors on disk, and queries of the same spectrum."""

    def __init__(self, folder: Path, count: int, d1: int, d2: int):
        config = InfluenceConfig.paper(projection_factor=1)
        entry, codec = ModuleEntry("layer", "linear", d1, d2, d1, d2, ""), codec_of(config)
        generator = torch.Generator().manual_seed(0)
        bases = [torch.linalg.qr(torch.randn(d, d, generator=generator)).Q * _scales(d) for d in (d1, d2)]
        shards: list[FactorShard] = []
        for start in range(0, count, config.shard_size):
            rows = min(config.shard_size, count - start)
            sides = [torch.randn(rows, len(basis), generator=generator) @ basis.T for basis in bases]
            parts = {part: side.unsqueeze(1).bfloat16() for part, side in zip(("u", "v"), sides, strict=True)}
            path = folder / factor_file(len(shards))
            write_shard(path, {entry.name: parts})
            file = file_entry(folder, path.relative_to(folder).as_posix())
            shards.append(FactorShard(file.file, file.bytes, file.sha256, start, rows, header_sha256(path)))
        reader = ShardReader(LocalStore(folder), shards, None, codec.layout)
        self.stored: StoredGradients = stored_gradients(reader, entry, count, codec)
        noise = torch.randn(QUERIES, d1, d2, generator=generator)
        self.queries = (bases[0] @ noise @ bases[1].T).flatten(1)

    def energy(self, vectors: Tensor) -> float:
        """trace(V^T C V)."""
        return sum(float((gradients @ vectors).double().square().sum()) for gradients in self.stored.matrices())

    def scores(self, fitted: curvature.Curvature) -> Tensor:
        """Of all examples, by the inverse Hessian: (Q, N)."""
        solved = curvature.woodbury_solve(self.queries, fitted.eigenvectors, fitted.eigenvalues, fitted.damping)
        return torch.cat([solved @ gradients.T for gradients in self.stored.matrices()], dim=1)

    def reading(self) -> float:
        """Seconds to read and convert the factors once."""
        start = time.perf_counter()
        for left, right in self.stored.factors(4_096):
            float(left[-1, -1, -1]) if right is None else float(right[-1, -1, -1])
        return time.perf_counter() - start


def methods(layer: Layer, rank: int) -> dict[str, Callable[[], curvature.Curvature]]:
    """The method that is chosen, the published one, and the cheaper randomised SVD where a sketch is called for."""
    stored, plan = layer.stored, plan_fit(layer.stored, rank)
    fits: dict[str, Callable[[], curvature.Curvature]] = {
        f"chosen: {plan.method}": lambda: curvature.fit(stored, plan, damping=DAMPING),
        PUBLISHED: lambda: published_svd.fit(stored, rank, DAMPING),
    }
    if plan.method == "nystroem":
        fits["randomised, 2 passes"] = lambda: published_svd.fit(stored, rank, DAMPING, passes=2)
    return fits


def measure(layer: Layer, rank: int, repeats: int, console: Console) -> dict[str, Any]:
    """Everything about one size."""
    fits, fitted = methods(layer, rank), {}
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    peaks = dict.fromkeys(fits, 0)
    for repeat in range(repeats):
        for name, fit in fits.items():
            fitted.pop(name, None)
            start = time.perf_counter()
            fitted[name], peak = _with_peak(fit)
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], peak)
            console.print(f"  {repeat + 1}/{repeats} {name}: {seconds[name][-1]:.1f} s")
    best, reference, of = _best(layer, rank, fitted)
    expected, median = layer.scores(reference), {name: statistics.median(times) for name, times in seconds.items()}
    rows = {}
    for name, result in fitted.items():
        energy = layer.energy(result.eigenvectors)
        rows[name] = {
            "seconds": median[name],
            "published_to_this": median[PUBLISHED] / median[name],
            "energy": energy / result.trace,
            "energy_to_best": None if best is None else energy / best,
            "score_correlation": _correlation(layer.scores(result), expected),
            "peak_bytes": peaks[name],
            "self_influence_seconds": 0.0 if result.self_influence is not None else _self_influence(layer, result),
        }
    return {"correlation_with": of, "reading_seconds": layer.reading(), "rows": rows}


def _best(
    layer: Layer, rank: int, fitted: dict[str, curvature.Curvature]
) -> tuple[float | None, curvature.Curvature, str]:
    """The most that rank r can capture, its curvature, and what that is called; the published where it is unknown."""
    exact = fitted.get("chosen: gram")
    if exact is not None:
        return float(exact.eigenvalues.double().sum()), exact, "the exact eigenpairs"
    if layer.stored.count > _EXACT:
        return None, fitted[PUBLISHED], PUBLISHED
    whole = dual_eigenpairs(layer.stored, layer.stored.count)  # every eigenpair: decomposed, not iterated for
    damping = fitted[PUBLISHED].damping
    kept = curvature.Curvature(whole.vectors[:, :rank], whole.values[:rank].float(), damping, whole.trace)
    return float(whole.values[:rank].sum()), kept, "the exact eigenpairs"


def _self_influence(layer: Layer, fitted: curvature.Curvature) -> float:
    start = time.perf_counter()
    for left, right in layer.stored.blocks(max(1, BLOCK_NUMBERS // (2 * layer.stored.dim))):
        curvature.self_influence(left, right, fitted)
    return time.perf_counter() - start


def _correlation(scores: Tensor, expected: Tensor) -> float:
    """Mean over queries."""
    pairs = zip(scores, expected, strict=True)
    return statistics.fmean(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)


def _with_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """What the call gives, and the bytes that it added to the process at its peak (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier methods left
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _status("VmHWM")
    result = call()
    return result, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _scales(size: int) -> Tensor:
    return torch.arange(1, size + 1) ** -_DECAY


def _table(name: str, case: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: N = {case['count']:,}, D = {case['d1'] * case['d2']:,}, r = {case['rank']:,}")
    heads = ("", "time", "published / this", "energy", "of the best", "score correlation", "peak MB", "self-influence")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    for method, row in case["rows"].items():
        best = row["energy_to_best"]
        table.add_row(
            method,
            f"{row['seconds']:.1f} s",
            f"{row['published_to_this']:.1f}",
            f"{row['energy']:.4f}",
            "-" if best is None else f"{best:.4f}",
            f"{row['score_correlation']:.4f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['self_influence_seconds']:.1f} s",
        )
    table.caption = (
        f"Correlation with the scores of {case['correlation_with']}. "
        f"Reading the factors once: {case['reading_seconds']:.2f} s."
    )
    return table


def main(
    case: Annotated[str, typer.Argument(help=f"one of {', '.join(CASES)}; all by default")] = "",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    results: Annotated[Path, typer.Option(help="where the JSON goes")] = RESULTS / "curvature.json",
) -> None:
    """Fit each size by the chosen method and by the published one."""
    if case and case not in CASES:
        raise typer.BadParameter(f"the sizes are {', '.join(CASES)}, got {case!r}")
    console, saved = Console(), {"machine": machine(), "threads": torch.get_num_threads(), "cases": {}}
    if case and results.exists():
        before = json.loads(results.read_text())
        if all(before[key] == saved[key] for key in ("machine", "threads")):
            saved = before  # the other sizes stay as they were measured
    for name in [case] if case else CASES:
        count, d1, d2, rank = CASES[name]
        console.print(f"{name}: N = {count:,}, {d1} x {d2}, r = {rank:,}")
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Layer(Path(folder), count, d1, d2), rank, repeats, console)
        saved["cases"][name] = {"count": count, "d1": d1, "d2": d2, "rank": rank, "repeats": repeats, **result}
        console.print(_table(name, saved["cases"][name]))
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(saved, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
