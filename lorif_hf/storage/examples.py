"""The example table: what a row of the index is to a person, and what the dataset viewer shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IndexCorruptedError
from .files import verified, write_atomically
from .layout import Manifest


ROW_GROUP = 1000  # rows read together when a few examples are looked up

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
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, row_group_size=ROW_GROUP))


def read_examples(folder: Path, manifest: Manifest, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The examples of the given rows, in their order; only the row groups that hold them are read."""
    found: dict[int, dict[str, Any]] = {}
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    for shard in manifest.examples:
        here = wanted[(wanted >= shard.start) & (wanted < shard.stop)]
        if not len(here):
            continue
        with open_table(folder, manifest, shard.file) as file:
            start = shard.start
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                inside = here[(here >= start) & (here < stop)] - start
                if len(inside):
                    table = file.read_row_group(group).take(pa.array(inside))
                    found.update((int(r) + start, v) for r, v in zip(inside, table.to_pylist(), strict=True))
                start = stop
    return [found[int(row)] for row in rows]


def read_column(folder: Path, manifest: Manifest, name: str) -> np.ndarray:
    """One column of the whole table, in row order."""
    parts = []
    for shard in manifest.examples:
        with open_table(folder, manifest, shard.file) as file:
            parts.append(file.read(columns=[name]).column(name).to_numpy())
    return np.concatenate(parts)


def open_table(folder: Path, manifest: Manifest, name: str) -> pq.ParquetFile:
    """Open one example file, verified and with the expected columns and number of rows."""
    entry = next(shard for shard in manifest.examples if shard.file == name)
    try:
        file = pq.ParquetFile(verified(folder, entry))
    except (pa.ArrowException, OSError) as error:
        raise IndexCorruptedError(name, f"it is no Parquet file ({error})") from error
    if not file.schema_arrow.equals(SCHEMA) or file.metadata.num_rows != entry.rows:
        raise IndexCorruptedError(
            name,
            f"it has {file.metadata.num_rows} rows of {', '.join(file.schema_arrow.names)}; expected {entry.rows} of "
            f"{', '.join(SCHEMA.names)}",
        )
    return file
