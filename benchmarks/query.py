"""How long a query takes, as ratios in one run: to reading the same bytes, to LoRIF's published scoring, to LoGRA's.

    python -m benchmarks.query                            # N = 10,000 and 100,000
    python -m benchmarks.query --max-examples 1000000     # 4.6 GB on disk while it runs, and the memory that it takes

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
from collections.abc import Callable
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
from lorif_hf.building.block_norms import shard_entry
from lorif_hf.codecs.codecs import Codec
from lorif_hf.querying.scan import Groups, Scan, best_scores, every_score
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore

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


def write(folder: Path, config: InfluenceConfig, count: int, entries: list[ModuleEntry], spread: float = 0) -> None:
    """Random factors; with `spread`, norms of a log-normal distribution, in runs as of sources put together."""
    codec, shards = config.codec(), -(-count // SHARD)
    table = []
    for number in range(shards):
        rows = min(SHARD, count - number * SHARD)
        generator = torch.Generator().manual_seed(number)
        norms = (spread * torch.randn(-(-rows // 1000), generator=generator)).exp().repeat_interleave(1000)[:rows]
        parts = {entry.name: _random_parts(codec, entry, rows, norms, generator) for entry in entries}
        file = factor_file(number, shards)
        write_shard(folder / file, parts)
        table.append(asdict(shard_entry(folder, file, number * SHARD, rows, entries, config)))
    (folder / "shards.json").write_text(json.dumps(table))


def _random_parts(codec: Codec, entry: ModuleEntry, rows: int, norms: Tensor, generator: torch.Generator) -> dict:
    parts = {}
    for name, (dtype, shape) in codec.layout(entry.d1, entry.d2).items():
        if dtype == torch.uint8:
            parts[name] = torch.randint(0, 256, (rows, *shape), dtype=dtype, generator=generator)
        else:
            numbers = torch.randn(rows, *shape, generator=generator)
            parts[name] = (numbers if name == "v" else numbers * norms.view(-1, *[1] * len(shape))).to(dtype)
    return parts


def opened(folder: Path, config: InfluenceConfig) -> ShardReader:
    table = json.loads((folder / "shards.json").read_text())
    shards = [FactorShard(**{**one, "block_norms": tuple(map(tuple, one["block_norms"]))}) for one in table]
    reader = ShardReader(LocalStore(folder), shards, None, config.codec().layout)
    for shard in shards:
        reader.store.path(shard)  # hashed once per process, as an index does when it is loaded
    return reader


def scan_of(groups: Groups, queries: int, reader: ShardReader, config: InfluenceConfig, entries: Any = None) -> Scan:
    return Scan(queries, groups, reader, entries or ENTRIES, entries or ENTRIES, config)


def whole(matrices: dict[str, Tensor]) -> Groups:
    return {name: [QueryGroup(torch.arange(len(one)), one)] for name, one in matrices.items()}


def read_and_sum(reader: ShardReader) -> None:
    """The floor: every byte of the shards read into memory by as many threads as score, and summed."""
    buffers = threading.local()

    def one(shard: FactorShard) -> float:
        if not hasattr(buffers, "bytes"):
            buffers.bytes = bytearray(max(shard.bytes for shard in reader.shards))
        with open(reader.store.folder / shard.file, "rb", buffering=0) as file:
            read = file.readinto(buffers.bytes)
        numbers = torch.frombuffer(buffers.bytes, dtype=torch.uint8, count=read // 2 * 2).view(torch.bfloat16)
        return float(numbers.sum())

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(one, reader.shards))
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
            name: woodbury_solve(one.flatten(1), self.vectors[name], self.values[name], self.damping).view_as(one)
            for name, one in gradients.items()
        }

    def prepare(self, gradients: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Once a query: V^T g weighted by s^2 / (s^2 + lambda), and g."""
        found = {}
        for name, one in gradients.items():
            weights = self.values[name] / (self.values[name] + self.damping)
            found[name] = (one.flatten(1) @ self.vectors[name]) * weights, one.flatten(1)
        return found

    def scores(self, prepared: dict[str, tuple[Tensor, Tensor]], parts: dict[str, Any], codec: Codec) -> Tensor:
        total = torch.zeros(())
        for name, some in parts.items():
            left, right = codec.factors(some, SIDE, SIDE)
            assert right is not None
            stored = reconstruct(left.float(), right.float()).flatten(1)
            projected, plain = prepared[name]
            total = total + (plain @ stored.T - projected @ (stored @ self.vectors[name]).T) / self.damping
        return total


def draw_queries(count: int, entries: Any = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {one.name: torch.randn(count, one.d1, one.d2, generator=generator) for one in entries or ENTRIES}


def timed(scan: Callable[[], Scan], reader: ShardReader, rank: int | None = None) -> dict[str, Any]:
    """Seconds of a search, those of the floor, and how many rows the last search looked at."""
    last: list[Scan] = []

    def search() -> None:
        last[:] = [scan()]
        best_scores(last[0], K, rank=rank)

    seconds, runs = median(search)
    floor, _ = median(lambda: read_and_sum(reader))
    total = last[0].count
    looked = {name: rows / total for name, rows in last[0].examined.items()}
    numbers = {"examples": total, "queries": last[0].queries, "seconds": seconds, "runs": runs}
    return {**numbers, "to_reading": seconds / floor, "looked_at": looked}


def published_rows(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """c = 1 in bfloat16 at each N and Q, beside the published scoring and a dense store of equal D."""
    rows, codec, published = [], PAPER.codec(), Published()
    write(folder / "dense", DENSE, DENSE_ROWS, ENTRIES)
    dense = opened(folder / "dense", DENSE)
    readers = [opened(folder / str(count), PAPER) for count in sizes]
    loaded = readers[0].load(readers[0].shards[0], ENTRIES)
    some = {name: {part: one[:PUBLISHED_ROWS] for part, one in parts.items()} for name, parts in loaded.items()}
    for queries in QUERIES:
        gradients = draw_queries(queries)
        prepared, groups = published.prepare(gradients), whole(published.preconditioned(gradients))
        expected, ours = published.scores(prepared, some, codec), torch.empty(queries, PUBLISHED_ROWS)
        every_score(Scan(queries, groups, readers[0], ENTRIES, ENTRIES, PAPER, torch.arange(PUBLISHED_ROWS)), ours)
        off = float((ours - expected).norm() / expected.norm())
        assert off <= 1e-4, f"the scores are not those of the published order: {off}"
        theirs = median(lambda: published.scores(prepared, some, codec))[0] / PUBLISHED_ROWS  # noqa: B023
        logra = median(lambda: best_scores(scan_of(groups, queries, dense, DENSE), K))[0] / DENSE_ROWS  # noqa: B023
        each = 0.0
        for reader, count in zip(readers, sizes, strict=True):
            if each * count > LONGEST:
                continue
            row = timed(lambda: scan_of(groups, queries, reader, PAPER), reader)  # noqa: B023
            each = row["seconds"] / count
            ratios = {"to_published": theirs / each, "to_dense": logra / each, "relative_difference": off}
            rows.append({"index": "c = 1, bfloat16", **row, **ratios})
    return rows


def packed_rows(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The default index: three pairs at one bit. Queries whole, or of 12 tokens and held thin."""
    rows, config = [], InfluenceConfig()
    for count in sizes:
        write(folder / f"packed-{count}", config, count, ENTRIES)
        reader = opened(folder / f"packed-{count}", config)
        for queries in QUERIES:
            groups = whole(draw_queries(queries))
            rows.append({"index": "c = 3, 1 bit", **timed(lambda: scan_of(groups, queries, reader, config), reader)})  # noqa: B023
    wide = [ModuleEntry("wide", "linear", 768, 3072, 768, 3072, "")]
    write(folder / "wide", config, 2000, wide)
    reader = opened(folder / "wide", config)
    for tokens in (16, 64):
        drawn = torch.randn(1, 768, tokens) @ torch.randn(1, tokens, 3072)
        thin = {"wide": compress(drawn, torch.arange(1), widest_rank(3, 768, 3072, 1), [tokens])}
        for name, groups in (("whole", whole({"wide": drawn})), (f"thin, rank {tokens}", thin)):
            row = timed(lambda: scan_of(groups, 1, reader, config, wide), reader)  # noqa: B023
            rows.append({"index": f"c = 3, 1 bit, one layer of 768 x 3072, query {name}", **row})
    return rows


def bound_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """What the bounds rule out: norms alike or heavy-tailed, queries whole or cut to rank 8 for the first look."""
    rows = []
    for name, spread in (("alike", 0.0), ("log-normal, sigma 1.5", 1.5)):
        write(folder / name, PAPER, count, ENTRIES, spread)
        reader = opened(folder / name, PAPER)
        side = 0.8 ** torch.arange(SIDE)
        falling = {one: drawn * side.view(-1, 1) * side for one, drawn in draw_queries(1).items()}
        for shape, groups in (("flat", whole(draw_queries(1))), ("falling", whole(falling))):
            for rank in (None, 8):
                row = timed(lambda: scan_of(groups, 1, reader, PAPER), reader, rank)  # noqa: B023
                rows.append({"index": f"c = 1, norms {name}, spectrum {shape}, query_rank={rank}", **row})
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
    best_scores(scan_of(whole(draw_queries(8)), 8, opened(folder, PAPER), PAPER), K)
    done.set()
    watcher.join()
    return peaks


def show(results: dict[str, Any]) -> None:
    table = Table(title=results["machine"])
    heads = ("index", "N", "Q", "seconds", "to reading", "published to ours", "LoGRA to ours", "read", "in full")
    for head in heads:
        table.add_column(head, justify="left" if head == "index" else "right")
    for row in results["rows"]:
        ratios = [f"{row[name]:,.1f}" if name in row else "-" for name in ("to_published", "to_dense")]
        looked = [f"{row['looked_at'][name]:.0%}" for name in ("read", "scored")]
        seconds = f"{row['seconds']:.3f}" + ("" if row["runs"] > 1 else " (one run)")
        numbers = [f"{row['examples']:,}", str(row["queries"]), seconds, f"{row['to_reading']:.2f}"]
        table.add_row(row["index"], *numbers, *ratios, *looked)
    Console().print(table)
    Console().print(
        f"The published scoring is measured on {PUBLISHED_ROWS:,} rows and LoGRA's on {DENSE_ROWS:,}, both per row: "
        f"they are linear in N. What would take over {LONGEST:.0f} s is left out."
    )
    for count, peaks in results["memory"].items():
        own, mapped = (peaks[name] / 2**20 for name in ("RssAnon", "RssFile"))
        Console().print(f"Peak at N = {int(count):,}, Q = 8: {own:,.0f} MiB of its own, {mapped:,.0f} MiB mapped.")


def main(
    max_examples: Annotated[int, typer.Option(help="Largest N.")] = 100_000,
    folder: Annotated[Path | None, typer.Option(help="Where the factors are written, and deleted again.")] = None,
    results: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "query.json",
    memory_of: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure queries and print the table."""
    if memory_of is not None:
        print(json.dumps(memory(memory_of)))
        return
    found: dict[str, Any] = {"machine": machine(), "rows": [], "memory": {}}
    sizes = [count for count in SIZES if count <= max_examples]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        for count in sizes:
            write(place / str(count), PAPER, count, ENTRIES)
            command = [sys.executable, "-m", "benchmarks.query", "--memory-of", str(place / str(count))]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found["memory"][str(count)] = json.loads(ran.stdout.splitlines()[-1])
        found["rows"] += published_rows(place, sizes)
        found["rows"] += packed_rows(place, [count for count in sizes if count <= 100_000])
        found["rows"] += bound_rows(place, min(max_examples, 100_000))
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    typer.run(main)
