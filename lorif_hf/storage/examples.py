"""The example table: what a row of the index is to a person, and what the dataset viewer shows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IndexCorruptedError, LorifError
from .files import write_atomically
from .layout import Manifest, Shard
from .store import Store


ROW_GROUP = 1000  # rows read together when a few examples are looked up
_TEXTS = ["example_id", "text"]
_NUMBERS = ("num_tokens", "loss", "self_influence")
_MOST_UNPACKED = 100  # times its size that a file may unpack to

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

_PLACES = ("source_row", "start", "stop")  # of a document in the dataset that packs it
_DOCUMENT = "document"
PACKED_SCHEMA = pa.schema([*SCHEMA, *((name, pa.int64()) for name in (*_PLACES, _DOCUMENT))])
"""Of the documents of a packed dataset."""


def write_examples(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the examples of one shard; equal columns give equal bytes."""
    schema = PACKED_SCHEMA if _DOCUMENT in columns else SCHEMA
    table = pa.table({name: list(columns[name]) for name in schema.names}, schema=schema)
    write_atomically(
        path,
        lambda temporary: pq.write_table(table, temporary, row_group_size=ROW_GROUP, write_page_checksum=True),
    )


def read_examples(store: Store, manifest: Manifest, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The examples of the given rows, in their order; only the row groups that hold them are read."""
    examples: dict[int, dict[str, Any]] = {}
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    for shard in manifest.examples:
        here = wanted[(wanted >= shard.start) & (wanted < shard.stop)]
        if not len(here):
            continue
        with _table(store, shard) as file:
            start = shard.start
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                inside = here[(here >= start) & (here < stop)] - start
                if len(inside):
                    records = (
                        _read_group(file, shard, group, file.schema_arrow.names).take(pa.array(inside)).to_pylist()
                    )
                    examples.update(
                        (int(row) + start, _checked(record, int(row) + start, shard))
                        for row, record in zip(inside, records, strict=True)
                    )
                start = stop
    return [examples[int(row)] for row in rows]


def read_documents(store: Store, manifest: Manifest) -> np.ndarray:
    """Which document each row is a piece of, float64 (N,); NaN where it is not known, or the row is a whole one."""
    return read_column(store, manifest, _DOCUMENT).astype(np.float64)


def read_column(store: Store, manifest: Manifest, name: str) -> np.ndarray:
    """One column of the whole table, in row order; NaN where a table is one of plain rows and has none."""
    parts = []
    for shard in manifest.examples:
        with _table(store, shard) as file:
            if name not in file.schema_arrow.names:
                parts.append(np.full(shard.rows, np.nan))
                continue
            groups = [_read_group(file, shard, group, [name]).column(name) for group in range(file.num_row_groups)]
        parts.append(np.concatenate([group.cast(PACKED_SCHEMA.field(name).type).to_numpy() for group in groups]))
    return np.concatenate(parts)


def check_examples(store: Store, shard: Shard) -> None:
    """Read every page of one example table and see that it holds what a build writes.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: names the file, and the row where one is wrong.
    """
    row = shard.start
    with _table(store, shard) as file:
        for group in range(file.num_row_groups):
            table = _read_group(file, shard, group, file.schema_arrow.names)
            table.validate(full=True)  # also that texts are UTF-8
            columns = {name: table.column(name).to_numpy() for name in ("row", *_NUMBERS)}
            good = columns["row"] == np.arange(row, row + table.num_rows)
            for name in _NUMBERS:
                good &= np.isfinite(columns[name])  # what is absent is NaN
            if _DOCUMENT in table.column_names:
                source, start, stop, document = (table.column(c).to_numpy() for c in (*_PLACES, _DOCUMENT))
                good &= (source >= 0) & (start >= 0) & (stop > start) & ~(document < 0)  # null is NaN
            if not good.all():
                place = int(np.flatnonzero(~good)[0])
                _checked(table.slice(place, 1).to_pylist()[0], row + place, shard)
            row += table.num_rows


@contextmanager
def _table(store: Store, shard: Shard) -> Iterator[pq.ParquetFile]:
    """One example file, open and checked: the expected columns and rows.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: names the file; also for what goes wrong while it is read.
        [`~lorif_hf.errors.HubError`]: it could not be read from the Hub.
    """
    try:
        source = store.parquet(shard)
        with pq.ParquetFile(source) as file:
            metadata, schema = file.metadata, file.schema_arrow
        if not (schema.equals(SCHEMA) or schema.equals(PACKED_SCHEMA)) or metadata.num_rows != shard.rows:
            raise IndexCorruptedError(
                shard.file,
                f"it has {metadata.num_rows} rows of {', '.join(schema.names)}; expected {shard.rows} of "
                f"{', '.join(SCHEMA.names)}",
            )
        # Texts stay dictionaries until a row is taken: a small file could repeat a long one without end.
        with pq.ParquetFile(
            source, metadata=metadata, page_checksum_verification=True, read_dictionary=_TEXTS
        ) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, LorifError):
            raise
        raise IndexCorruptedError(shard.file, f"it is no Parquet file ({error})") from error


def _read_group(file: pq.ParquetFile, shard: Shard, group: int, columns: list[str]) -> pa.Table:
    """Columns of one row group, unless it would unpack to far more than its file can mean."""
    unpacked = file.metadata.row_group(group).total_byte_size
    if unpacked > _MOST_UNPACKED * (shard.bytes + 1024):
        raise IndexCorruptedError(shard.file, f"{shard.bytes} bytes claim to unpack to {unpacked}")
    return file.read_row_group(group, columns=columns)


def _checked(example: dict[str, Any], row: int, shard: Shard) -> dict[str, Any]:
    """An example whose row number is its place and whose values are finite."""
    values = [example[name] for name in _NUMBERS]
    if example["row"] != row or not all(value is not None and math.isfinite(value) for value in values):
        raise IndexCorruptedError(shard.file, f"row {row} calls itself {example['row']} or holds no finite numbers")
    if _DOCUMENT in example:
        source, start, stop = (example[name] for name in _PLACES)
        known = None not in (source, start, stop) and source >= 0 and 0 <= start < stop
        if not known or not (example[_DOCUMENT] is None or example[_DOCUMENT] >= 0):
            raise IndexCorruptedError(
                shard.file,
                f"row {row} is tokens {start} to {stop} of row {source} of its dataset, document {example[_DOCUMENT]}",
            )
    return example
