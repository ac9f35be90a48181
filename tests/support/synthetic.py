"""Indices of random factors, written as real shards: for what needs many rows and no model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from codec_scores import rebuilt
from factor_shards import shard_entry
from torch import Tensor

from lorif_hf import InfluenceConfig
from lorif_hf.codecs import codec_of
from lorif_hf.querying.scan import Scan
from lorif_hf.storage.files import write_tensors
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore


@dataclass
class Synthetic:
    """An index's shards, and what they hold as matrices: float64 (N, d1, d2) by entry, and the weights (N,)."""

    config: InfluenceConfig
    entries: list[ModuleEntry]
    reader: ShardReader
    held: dict[str, Tensor]
    weights: Tensor

    def scan(self, groups, queries, rows=None, weighted=True) -> Scan:
        """Weighted where the config's examples have weights, as the index asks for it."""
        codec, weighted = codec_of(self.config), weighted and self.config.weighted
        return Scan(queries, groups, self.reader, self.entries, codec, rows, weighted)


def write(folder: Path, config: InfluenceConfig, shapes, sizes, norms=None, seed=0) -> Synthetic:
    """Random gradients of the given (d1, d2), times the rows' `norms`, in shards of the given sizes."""
    generator, codec = torch.Generator().manual_seed(seed), codec_of(config)
    entries = [ModuleEntry(f"m.{i}", "linear", d1, d2, d1, d2, "") for i, (d1, d2) in enumerate(shapes)]
    held: dict[str, list[Tensor]] = {entry.name: [] for entry in entries}
    weights = torch.rand(sum(sizes), generator=generator)
    shards, start = [], 0
    for number, rows in enumerate(sizes):
        parts, place = {}, slice(start, start + rows)
        for entry in entries:
            matrices = torch.randn(rows, entry.d1, entry.d2, generator=generator)
            matrices *= 1.0 if norms is None else norms[place].view(-1, 1, 1)
            parts[entry.name] = codec.encode(matrices)
            held[entry.name].append(rebuilt(codec, parts[entry.name], entry.d1, entry.d2))
        file = factor_file(number)
        write_shard(folder / file, parts, weights[place] if config.weighted else None)
        shards.append(shard_entry(folder, file, start, rows))
        start += rows
    reader = ShardReader(LocalStore(folder), shards, None, codec.layout)
    weights = weights if config.weighted else torch.ones(start)
    return Synthetic(config, entries, reader, {name: torch.cat(some) for name, some in held.items()}, weights)


def write_number(index: Synthetic, folder: Path, number: int, tensor: str, place, value: float) -> FactorShard:
    """Write one number of a tensor in a shard anew. Returns the shard, whole again for the index."""
    shard = index.reader.shards[number]
    stored = index.reader.store.tensors(shard)
    tensors = {name: stored.read(name).clone() for name in stored.spans}
    tensors[tensor][place] = value
    write_tensors(folder / shard.file, tensors)
    index.reader.shards[number] = shard_entry(folder, shard.file, shard.start, shard.rows)
    return index.reader.shards[number]
