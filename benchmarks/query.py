"""How long a query takes, as ratios in one run: to reading the same bytes, to LoRIF's published scoring, to LoGRA's.

    python -m benchmarks.query                            # N = 10,000 and 100,000
    python -m benchmarks.query --max-examples 1000000     # 4.6 GB on disk while it runs, and the memory that it takes
    python -m benchmarks.query --cold                     # 15 GB on disk; see cold_query.py
    python -m benchmarks.query --signs                    # see sign_query.py

Synthetic factors in real shards, 24 layers of 48 x 48; random queries. Every time is that of the whole search for the
ten best rows by `lorif_hf.querying.scan`, files in the page cache, medians of five (of one run where that takes over
20 s).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.curvature import woodbury_solve
from lorif_hf.algebra.factors import reconstruct
from lorif_hf.algebra.scoring import QueryGroup
from lorif_hf.algebra.thin_queries import compress, widest_rank
from lorif_hf.codecs import Codec, Parts, codec_of
from lorif_hf.querying.scan import Groups, Scan, best_scores, every_score
from lorif_hf.storage.files import file_entry, header_sha256
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore

from . import cold_query, sign_query
from .machine import machine
from .quality import RESULTS


MODULES, SIDE, RANK, SHARD = 24, 48, 2048, 10_000
DIM = SIDE * SIDE
QUERIES, SIZES, K = (1, 8, 64, 512), (10_000, 100_000, 1_000_000), 10
PUBLISHED_ROWS, DENSE_ROWS = 256, 2_000
LONG, LONGEST = 20.0, 240.0  # seconds above which one run is enough, and above which none is made
ENTRIES = [ModuleEntry(f"layer.{i}", "linear", SIDE, SIDE, SIDE, SIDE, "") for i in range(MODULES)]
PAPER = InfluenceConfig.paper(projection_factor=1)
DENSE = InfluenceConfig.logra(projection_factor=1)


def median(work: Callable[[], Any], repeats: int = 5) -> tuple[float, int]:
    """Seconds, and how many runs it is the median of; a first run warms up, and is all where it took long."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
        if times[0] > LONG:
            return times[0], 1
    return statistics.median(times[1:]), repeats


def write(folder: Path, config: InfluenceConfig, count: int, entries: Sequence[ModuleEntry] = ENTRIES) -> None:
    """Random factors, and the table of their shards."""
    codec, shards = codec_of(config), []
    for start in range(0, count, SHARD):
        rows = min(SHARD, count - start)
        generator = torch.Generator().manual_seed(len(shards))
        path = folder / factor_file(len(shards))
        write_shard(path, {entry.name: _random_parts(codec, entry, rows, generator) for entry in entries})
        file = file_entry(folder, path.relative_to(folder).as_posix())
        shards.append(FactorShard(file.file, file.bytes, file.sha256, start, rows, header_sha256(path)))
    (folder / "shards.json").write_text(json.dumps([asdict(shard) for shard in shards]))


def _random_parts(codec: Codec, entry: ModuleEntry, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    parts = {}
    for name, (dtype, shape) in codec.layout(entry.d1, entry.d2).items():
        if dtype == torch.uint8:
            parts[name] = torch.randint(0, 256, (rows, *shape), dtype=dtype, generator=generator)
        else:
            parts[name] = torch.randn(rows, *shape, generator=generator).to(dtype)
    return parts


def opened(folder: Path, config: InfluenceConfig) -> ShardReader:
    shards = [FactorShard(**row) for row in json.loads((folder / "shards.json").read_text())]
    reader = ShardReader(LocalStore(folder), shards, None, codec_of(config).layout)
    for shard in shards:
        reader.store.path(shard)  # hashed once per process, as an index does when it is loaded
    return reader


def search(
    groups: Groups,
    queries: int,
    reader: ShardReader,
    config: InfluenceConfig,
    entries: Sequence[ModuleEntry] = ENTRIES,
) -> None:
    """What is measured: the best rows of each query."""
    best_scores(Scan(queries, groups, reader, entries, codec_of(config)), K)


def whole(matrices: dict[str, Tensor]) -> Groups:
    """Queries (Q, d1, d2) by layer, held whole."""
    return {name: [QueryGroup(torch.arange(len(gradients)), gradients)] for name, gradients in matrices.items()}


def read_and_sum(reader: ShardReader) -> None:
    """The floor: every byte of the shards read into memory by as many threads as score, and summed."""
    buffers = threading.local()

    def sum_of(shard: FactorShard) -> float:
        if not hasattr(buffers, "bytes"):
            buffers.bytes = bytearray(max(shard.bytes for shard in reader.shards))
        with open(reader.store.folder / shard.file, "rb", buffering=0) as file:
            read = file.readinto(buffers.bytes)
        content = torch.frombuffer(buffers.bytes, dtype=torch.uint8, count=read // 2 * 2)
        return float(content.view(torch.bfloat16).sum())

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(sum_of, reader.shards))
    torch.set_num_threads(threads)


class Published:
    """The published order of the products: every training gradient is rebuilt and projected at every query."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.damping = 0.3
        self.vectors, self.values = {}, {}
        for entry in ENTRIES:
            self.vectors[entry.name] = torch.linalg.qr(torch.randn(DIM, RANK, generator=generator)).Q
            self.values[entry.name] = torch.rand(RANK, generator=generator).sort(descending=True).values

    def preconditioned(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: woodbury_solve(g.flatten(1), self.vectors[name], self.values[name], self.damping).view_as(g)
            for name, g in gradients.items()
        }

    def prepare(self, gradients: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Once a query: V^T g weighted by s^2 / (s^2 + lambda), and g."""
        prepared = {}
        for name, g in gradients.items():
            weights = self.values[name] / (self.values[name] + self.damping)
            prepared[name] = (g.flatten(1) @ self.vectors[name]) * weights, g.flatten(1)
        return prepared

    def scores(self, prepared: dict[str, tuple[Tensor, Tensor]], loaded: Mapping[str, Parts], codec: Codec) -> Tensor:
        """Of the rows that were loaded, (Q, n)."""
        total = torch.zeros(())
        for name, parts in loaded.items():
            left, right = codec.factors(parts, SIDE, SIDE)
            assert right is not None
            stored = reconstruct(left.float(), right.float()).flatten(1)
            projected, plain = prepared[name]
            total = total + (plain @ stored.T - projected @ (stored @ self.vectors[name]).T) / self.damping
        return total


def draw_queries(count: int) -> dict[str, Tensor]:
    """Random queries (Q, d1, d2) by layer."""
    generator = torch.Generator().manual_seed(1)
    return {entry.name: torch.randn(count, entry.d1, entry.d2, generator=generator) for entry in ENTRIES}


def timed(
    groups: Groups,
    queries: int,
    reader: ShardReader,
    config: InfluenceConfig,
    entries: Sequence[ModuleEntry] = ENTRIES,
) -> dict[str, Any]:
    """Seconds of a search, and as a ratio to the floor."""
    seconds, runs = median(lambda: search(groups, queries, reader, config, entries))
    floor, _ = median(lambda: read_and_sum(reader))
    examples = sum(shard.rows for shard in reader.shards)
    row = {"examples": examples, "queries": queries, "seconds": seconds, "runs": runs}
    return {**row, "to_reading": seconds / floor}


def published_rows(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """c = 1 in bfloat16 at each N and Q, beside the published scoring and a dense store of equal D."""
    rows, codec, published = [], codec_of(PAPER), Published()
    write(folder / "dense", DENSE, DENSE_ROWS)
    dense = opened(folder / "dense", DENSE)
    readers = [opened(folder / str(count), PAPER) for count in sizes]
    loaded = readers[0].load(readers[0].shards[0], ENTRIES)
    first = {name: {part: tensor[:PUBLISHED_ROWS] for part, tensor in parts.items()} for name, parts in loaded.items()}
    for queries in QUERIES:
        gradients = draw_queries(queries)
        prepared, groups = published.prepare(gradients), whole(published.preconditioned(gradients))
        expected, ours = published.scores(prepared, first, codec), torch.empty(queries, PUBLISHED_ROWS)
        every_score(Scan(queries, groups, readers[0], ENTRIES, codec, torch.arange(PUBLISHED_ROWS)), ours)
        off = float((ours - expected).norm() / expected.norm())
        assert off <= 1e-4, f"the scores are not those of the published order: {off}"
        theirs = median(lambda: published.scores(prepared, first, codec))[0] / PUBLISHED_ROWS  # noqa: B023
        logra = median(lambda: search(groups, queries, dense, DENSE))[0] / DENSE_ROWS  # noqa: B023
        each = 0.0
        for reader, count in zip(readers, sizes, strict=True):
            if each * count > LONGEST:
                continue
            row = timed(groups, queries, reader, PAPER)
            each = row["seconds"] / count
            ratios = {"to_published": theirs / each, "to_dense": logra / each, "relative_difference": off}
            rows.append({"index": "c = 1, bfloat16", **row, **ratios})
    return rows


def packed_rows(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The default index: three pairs at one bit. Queries whole, or of 12 tokens and held thin."""
    rows, config = [], InfluenceConfig()
    for count in sizes:
        write(folder / f"packed-{count}", config, count)
        reader = opened(folder / f"packed-{count}", config)
        for queries in QUERIES:
            groups = whole(draw_queries(queries))
            rows.append({"index": "c = 3, 1 bit", **timed(groups, queries, reader, config)})
    wide = [ModuleEntry("wide", "linear", 768, 3072, 768, 3072, "")]
    write(folder / "wide", config, 2000, wide)
    reader = opened(folder / "wide", config)
    for tokens in (16, 64):
        drawn = torch.randn(1, 768, tokens) @ torch.randn(1, tokens, 3072)
        thin = {"wide": compress(drawn, torch.arange(1), widest_rank(3, 768, 3072, 1), [tokens])}
        for name, groups in (("whole", whole({"wide": drawn})), (f"thin, rank {tokens}", thin)):
            row = timed(groups, 1, reader, config, wide)
            rows.append({"index": f"c = 3, 1 bit, one layer of 768 x 3072, query {name}", **row})
    return rows


def memory(folder: Path) -> dict[str, int]:
    """Peaks in bytes of this process: memory of its own, and pages of mapped files."""
    peaks, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for line in Path("/proc/self/status").read_text().splitlines():
                name = line.partition(":")[0]
                if name in peaks:
                    peaks[name] = max(peaks[name], 1024 * int(line.split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    search(whole(draw_queries(8)), 8, opened(folder, PAPER), PAPER)
    done.set()
    watcher.join()
    return peaks


def show(results: dict[str, Any]) -> None:
    table = Table(title=results["machine"])
    heads = ("index", "N", "Q", "seconds", "to reading", "published to ours", "LoGRA to ours")
    for head in heads:
        table.add_column(head, justify="left" if head == "index" else "right")
    for row in results["rows"]:
        ratios = [f"{row[name]:,.1f}" if name in row else "-" for name in ("to_published", "to_dense")]
        seconds = f"{row['seconds']:.3f}" + ("" if row["runs"] > 1 else " (one run)")
        size = f"{row['examples']:,}", str(row["queries"])
        table.add_row(row["index"], *size, seconds, f"{row['to_reading']:.2f}", *ratios)
    Console().print(table)
    Console().print(
        f"The published scoring is measured on {PUBLISHED_ROWS:,} rows and LoGRA's on {DENSE_ROWS:,}, both per row: "
        f"they are linear in N. What would take over {LONGEST:.0f} s is left out."
    )
    for count, peaks in results["memory"].items():
        own, mapped = (peaks[name] / 2**20 for name in ("RssAnon", "RssFile"))
        Console().print(f"Peak at N = {int(count):,}, Q = 8: {own:,.0f} MiB of its own, {mapped:,.0f} MiB mapped.")


def main(
    max_examples: Annotated[int, typer.Option(min=SIZES[0], help="Largest N.")] = 100_000,
    folder: Annotated[Path | None, typer.Option(help="Where the factors are written, and deleted again.")] = None,
    results: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "query.json",
    cold: Annotated[bool, typer.Option("--cold", help="One query of files that are not in memory, alone.")] = False,
    signs: Annotated[bool, typer.Option("--signs", help="Few queries of the default, both ways, alone.")] = False,
    memory_of: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure queries and print the table."""
    if memory_of is not None:
        print(json.dumps(memory(memory_of)))
        return
    if signs:
        sign_query.run(folder, results)
        return
    if cold:
        cold_query.run(folder, results)
        return
    saved: dict[str, Any] = {"machine": machine(), "rows": [], "memory": {}}
    sizes = [count for count in SIZES if count <= max_examples]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        for count in sizes:
            write(place / str(count), PAPER, count)
            command = [sys.executable, "-m", "benchmarks.query", "--memory-of", str(place / str(count))]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            saved["memory"][str(count)] = json.loads(ran.stdout.splitlines()[-1])
        saved["rows"] += published_rows(place, sizes)
        saved["rows"] += packed_rows(place, [count for count in sizes if count <= 100_000])
    results.parent.mkdir(exist_ok=True)
    before = json.loads(results.read_text()) if results.exists() else {}
    saved |= {name: before[name] for name in ("cold", "signs") if name in before}
    results.write_text(json.dumps(saved, indent=2) + "\n")
    show(saved)


if __name__ == "__main__":
    typer.run(main)
