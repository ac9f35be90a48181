"""Bounds of the stored gradients' norms, block by block: what the manifest says so that a query can skip blocks."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Context
from pathlib import Path

import torch
from torch import Tensor

from ..config import InfluenceConfig
from ..errors import IndexCorruptedError
from ..storage.files import file_entry, header_sha256
from ..storage.layout import MANIFEST, NORM_BLOCK, FactorShard, ModuleEntry
from ..storage.shards import ShardReader
from ..storage.store import LocalStore


_SHORT = Context(prec=4, rounding=ROUND_CEILING)  # four digits, never below


def block_norms(
    reader: ShardReader, shard: FactorShard, entries: Sequence[ModuleEntry], config: InfluenceConfig
) -> Tensor:
    """The largest norm of each block and stored gradient, weights counted in: float64 (blocks, entries).

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: a stored number is not finite.
    """
    codec, columns = config.codec(), []
    weights = reader.weights(shard).double() if config.output == "margin" else 1.0
    for entry in entries:
        norms = weights * codec.norms(reader.load(shard, [entry])[entry.name], entry.d1, entry.d2)
        if not bool(torch.isfinite(norms).all()):
            raise IndexCorruptedError(shard.file, f"the factors of '{entry.name}' are not all finite numbers")
        columns.append(torch.stack([block.max() for block in norms.split(NORM_BLOCK)]))
    return torch.stack(columns, dim=1)


def shard_entry(
    folder: Path, file: str, start: int, rows: int, entries: Sequence[ModuleEntry], config: InfluenceConfig
) -> FactorShard:
    """The manifest's entry of a factor file that is written: rows `start` to `start + rows`.

    The norms are those of what is stored, so that a build that resumes finds the same; each has four digits and is
    not below what it was.
    """
    found = file_entry(folder, file)
    shard = FactorShard(file, found.bytes, found.sha256, start, rows, header_sha256(folder / file))
    reader = ShardReader(LocalStore(folder), [shard], None, config.codec().layout)
    norms = block_norms(reader, shard, entries, config).tolist()
    rounded = tuple(tuple(float(_SHORT.create_decimal_from_float(norm)) for norm in row) for row in norms)
    return replace(shard, block_norms=rounded)


def check_norms(
    reader: ShardReader, shard: FactorShard, entries: Sequence[ModuleEntry], config: InfluenceConfig
) -> None:
    """See that no row's norm is above what the manifest says of its block.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: one is, so that a query could skip it.
    """
    found = block_norms(reader, shard, entries, config)
    stated = torch.tensor(shard.block_norms, dtype=torch.float64)
    if stated.shape != found.shape or not bool((found <= stated * (1 + 1e-6)).all()):
        raise IndexCorruptedError(MANIFEST, f"the block_norms of {shard.file} are below those of its factors")
