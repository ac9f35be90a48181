"""One query of an index whose files are not in memory: LoRIF as published beside LoGRA's dense store of equal D.

    python -m benchmarks.query --cold

Two layers of 192 x 192: GPT-2's attention output (768 x 768) at f = 4. A dense row of all twelve would take 885 kB:
100,000 of them fit no usual disk; both stores grow alike with the layers. The pages of every file are dropped before
each query, and their absence is checked. What the disk has no room for is not measured but scaled up by its rows, and
marked: reading is linear in them.
"""

import ctypes
import json
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.scoring import QueryGroup
from lorif_hf.codecs import codec_of
from lorif_hf.querying.scan import Scan, best_scores
from lorif_hf.storage.files import file_entry, header_sha256
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore

from .machine import load, machine


SIDE, LAYERS = 192, 2
ENTRIES = [ModuleEntry(f"layer.{i}", "linear", 4 * SIDE, 4 * SIDE, SIDE, SIDE, "") for i in range(LAYERS)]
STORES = {"LoRIF, f = 4, c = 1, bfloat16": InfluenceConfig.paper(), "LoGRA, f = 4, bfloat16": InfluenceConfig.logra()}
SIZES, SHARD, REPEATS, K = (100_000, 1_000_000), 10_000, 3, 10
SPARE = 4 << 30  # bytes of the disk that are left free


def write(folder: Path, config: InfluenceConfig, count: int) -> ShardReader:
    """An index of random factors. Its shards are copies of one: each is a file of its own."""
    codec, generator = codec_of(config), torch.Generator().manual_seed(0)
    parts = {
        entry.name: {
            name: torch.randn(SHARD, *shape, generator=generator).to(dtype)
            for name, (dtype, shape) in codec.layout(entry.d1, entry.d2).items()
        }
        for entry in ENTRIES
    }
    shards: list[FactorShard] = []
    for start in range(0, count, SHARD):
        path = folder / factor_file(len(shards))
        if shards:
            shutil.copyfile(folder / shards[0].file, path)
        else:
            write_shard(path, parts)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        entry = file_entry(folder, path.relative_to(folder).as_posix())
        shards.append(FactorShard(entry.file, entry.bytes, entry.sha256, start, SHARD, header_sha256(path)))
        _drop(path)
    return ShardReader(LocalStore(folder), shards, None, codec.layout)


def _drop(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident(path: Path) -> int:
    """Bytes of a file that are in memory."""
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    content = np.frombuffer(pages, dtype=np.uint8)
    there = (ctypes.c_ubyte * -(-len(content) // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content)), there):
        raise OSError(ctypes.get_errno(), "mincore")
    return mmap.PAGESIZE * int((np.frombuffer(there, dtype=np.uint8) & 1).sum())


def _dropped(reader: ShardReader) -> float:
    """Have the index's files leave memory; the share of them that stayed."""
    paths = [reader.store.folder / shard.file for shard in reader.shards]  # type: ignore[attr-defined]
    for path in paths:
        _drop(path)
    return sum(map(_resident, paths)) / sum(shard.bytes for shard in reader.shards)


def _search(reader: ShardReader, config: InfluenceConfig) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = {entry.name: torch.randn(1, entry.d1, entry.d2, generator=generator) for entry in ENTRIES}
    groups = {name: [QueryGroup(torch.arange(1), matrices)] for name, matrices in queries.items()}
    best_scores(Scan(1, groups, reader, ENTRIES, codec_of(config)), K)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path | None) -> dict[str, Any]:
    """Every store at every size that the disk has room for, in turns."""
    rows: list[dict[str, Any]] = []
    for count in SIZES:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place, readers = Path(name), {}
            for store, config in STORES.items():
                each = sum(codec_of(config).bytes_per_example(entry.d1, entry.d2) for entry in ENTRIES)
                if each * count < shutil.disk_usage(place).free - SPARE:
                    readers[store] = write(place / str(len(readers)), config, count)
                rows.append(
                    {"store": store, "examples": count, "bytes_per_example": each, "measured": store in readers}
                )
            times: dict[str, list[float]] = {store: [] for store in readers}
            stayed = 0.0
            for _ in range(REPEATS):
                for store, reader in readers.items():
                    stayed = max(stayed, _dropped(reader))
                    times[store].append(_seconds(lambda: _search(reader, STORES[store])))  # noqa: B023
            assert stayed < 0.01, f"{stayed:.1%} of the files' bytes were still in memory"
            for row in rows[-len(STORES) :]:
                if row["measured"]:
                    row["seconds"] = statistics.median(times[row["store"]])
                else:
                    smaller = next(other for other in rows if other["store"] == row["store"])
                    row["seconds"] = smaller["seconds"] * count / smaller["examples"]
    return {"machine": machine(), "load": load(), "layers": LAYERS, "side": SIDE, "rows": rows}


def show(results: dict[str, Any]) -> None:
    table = Table("store", "N", "bytes of a row", "s", title=f"Cold: {results['machine']}, load {results['load']}")
    for ours, dense in zip(results["rows"][::2], results["rows"][1::2], strict=True):
        for row in (ours, dense):
            seconds = f"{row['seconds']:.2f}" + ("" if row["measured"] else " (scaled up)")
            table.add_row(row["store"], f"{row['examples']:,}", f"{row['bytes_per_example']:,}", seconds)
        times, size = dense["seconds"] / ours["seconds"], dense["bytes_per_example"] / ours["bytes_per_example"]
        table.add_row("LoGRA / LoRIF", f"{ours['examples']:,}", f"{size:.0f}", f"{times:.1f}")
    Console().print(table)


def run(folder: Path | None, path: Path) -> None:
    """Measure, print and put beside what the file holds."""
    saved = json.loads(path.read_text()) if path.exists() else {}
    saved["cold"] = measure(folder)
    path.write_text(json.dumps(saved, indent=2) + "\n")
    show(saved["cold"])
