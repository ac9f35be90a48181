"""The example table: what a row of the index is to a person, and what the dataset viewer shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IndexCorruptedError, LorifError
from .files import write_atomically
from .layout import Manifest, Shard
from .store import LocalStore


ROW_GROUP = 1000  # rows read together when a few examples are looked up
_MOST_UNPACKED = 1000  # times its size that a file may unpack to

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("example_id", pa.string()),
        ("text", pa.string()),
        ("num_tokens", pa.int64()),
        ("loss", pa.float64()),
        ("self_influence", pa.float64()),
    ]
)


def write_examples(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the examples of one shard; equal columns give equal bytes."""
    table = pa.table({name: list(columns[name]) for name in SCHEMA.names}, schema=SCHEMA)
    write_atomically(
        path,
        lambda temporary: pq.write_table(table, temporary, row_group_size=ROW_GROUP, write_page_checksum=True),
    )


def read_examples(store: LocalStore, manifest: Manifest, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The examples of the given rows, in their order; only the row groups that hold them are read."""
    found: dict[int, dict[str, Any]] = {}
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    for shard in manifest.examples:
        here = wanted[(wanted >= shard.start) & (wanted < shard.stop)]
        if not len(here):
            continue
        with open_table(store, shard) as file:
            start = shard.start
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                inside = here[(here >= start) & (here < stop)] - start
                if len(inside):
                    table = _read_group(file, shard, group).take(pa.array(inside))
                    found.update((int(r) + start, v) for r, v in zip(inside, table.to_pylist(), strict=True))
                start = stop
    return [found[int(row)] for row in rows]


def read_column(store: LocalStore, manifest: Manifest, name: str) -> np.ndarray:
    """One column of the whole table, in row order."""
    parts = []
    for shard in manifest.examples:
        with open_table(store, shard) as file:
            parts.append(file.read(columns=[name]).column(name).to_numpy())
    return np.concatenate(parts)


def open_table(store: LocalStore, shard: Shard) -> pq.ParquetFile:
    """Open one example file, checked: the expected columns, rows, and no more data than such a file can hold.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: names the file.
    """
    try:
        file = pq.ParquetFile(store.parquet(shard), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, LorifError):
            raise
        raise IndexCorruptedError(shard.file, f"it is no Parquet file ({error})") from error
    if not file.schema_arrow.equals(SCHEMA) or file.metadata.num_rows != shard.rows:
        raise IndexCorruptedError(
            shard.file,
            f"it has {file.metadata.num_rows} rows of {', '.join(file.schema_arrow.names)}; expected {shard.rows} of "
            f"{', '.join(SCHEMA.names)}",
        )
    return file


def _read_group(file: pq.ParquetFile, shard: Shard, group: int) -> pa.Table:
    """One row group, unless it would unpack to far more than its file can mean."""
    unpacked = file.metadata.row_group(group).total_byte_size
    if unpacked > _MOST_UNPACKED * (shard.bytes + 1024):
        raise IndexCorruptedError(shard.file, f"{shard.bytes} bytes claim to unpack to {unpacked}")
    try:
        return file.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, LorifError):
            raise
        raise IndexCorruptedError(shard.file, f"row group {group} cannot be read ({error})") from error
