"""The example table: what a row of the index is to a person, and what the dataset viewer shows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IndexCorruptedError, LorifError, QueryError
from .example_columns import DOCUMENT, NUMBERS, PACKED_SCHEMA, PLACES, SCHEMA, is_example_schema, owned_fields
from .files import write_atomically
from .layout import Manifest, Shard
from .store import Store


ROW_GROUP = 1000  # rows read together when a few examples are looked up
_MOST_UNPACKED = 100  # times its size that a file may unpack to
_UNPACKED_ANYWAY = 1 << 30  # bytes of text that a table may hold in memory, whatever its file's size


def write_examples(path: Path, columns: Mapping[str, Sequence[Any]], owned: Mapping[str, str] | None = None) -> None:
    """Write the examples of one shard; equal columns give equal bytes.

    Args:
        path (`Path`): the file.
        columns (`Mapping[str, Sequence]`): by name, a value for each row.
        owned (`Mapping[str, str]`, *optional*): the owner's own columns among them, and what each holds: one of
            [`~lorif_hf.storage.example_columns.KINDS`].
    """
    schema = PACKED_SCHEMA if DOCUMENT in columns else SCHEMA
    schema = pa.schema([*schema, *owned_fields(owned or {})])
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
                    table = _read_group(file, shard, group, file.schema_arrow.names).take(pa.array(inside))
                    for row, record in zip(inside.tolist(), _records(table), strict=True):
                        examples[row + start] = _checked(record, row + start, shard)
                start = stop
    return [examples[int(row)] for row in rows]


def read_documents(store: Store, manifest: Manifest) -> np.ndarray:
    """Which document each row is a piece of, float64 (N,); NaN where it is not known, or the row is a whole one."""
    return read_column(store, manifest, DOCUMENT).astype(np.float64)


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


def read_values(store: Store, manifest: Manifest, name: str) -> list[Any]:
    """One column of the whole table, the owner's or another, as Python's values in row order; `None` where there is
    none.

    Raises:
        [`~lorif_hf.errors.QueryError`]: no table has such a column.
    """
    values: list[Any] = []
    present: dict[str, None] = {}
    for shard in manifest.examples:
        with _table(store, shard) as file:
            present |= dict.fromkeys(file.schema_arrow.names)
            if name not in file.schema_arrow.names:
                values += [None] * shard.rows
                continue
            for group in range(file.num_row_groups):
                values += _python(_read_group(file, shard, group, [name]).column(name))
    if name not in present:
        raise QueryError(f"The examples have no column {name!r}: there are {', '.join(map(repr, present))}.")
    return values


def table_of(store: Store, manifest: Manifest, examples: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Examples as a table, with the columns of all example files.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: their texts would take far more memory than the files can mean.
    """
    fields: dict[str, pa.Field] = {}
    for shard in manifest.examples:
        with _table(store, shard) as file:
            kinds = {field.name: field for field in _plain(file.schema_arrow)}
            fields = {**fields, **kinds}
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    allowed = max(_UNPACKED_ANYWAY, _MOST_UNPACKED * sum(shard.bytes for shard in manifest.examples))
    for example in examples:
        allowed -= sum(len(value) for value in example.values() if isinstance(value, str))
        if allowed < 0:
            raise IndexCorruptedError(manifest.examples[0].file, "its texts repeat themselves beyond all memory")
        for name, values in columns.items():
            values.append(example.get(name))
    return pa.table(columns, schema=pa.schema(fields.values()))


def check_examples(store: Store, shard: Shard) -> None:
    """Read every page of one example table and see that it holds what a build writes.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: names the file, and the row where one is wrong.
    """
    row = shard.start
    with _table(store, shard) as file:
        floats = [
            field.name for field in file.schema_arrow if field.type == pa.float64() and field.name not in NUMBERS
        ]
        for group in range(file.num_row_groups):
            table = _read_group(file, shard, group, file.schema_arrow.names)
            table.validate(full=True)  # also that texts are UTF-8
            columns = {name: table.column(name).to_numpy() for name in ("row", *NUMBERS)}
            good = columns["row"] == np.arange(row, row + table.num_rows)
            for name in NUMBERS:
                good &= np.isfinite(columns[name])  # what is absent is NaN
            for name in set(floats) - set(NUMBERS):  # the owner's, which may be absent
                good &= np.isfinite(table.column(name).fill_null(0).to_numpy())
            if DOCUMENT in table.column_names:
                source, start, stop, document = (table.column(c).to_numpy() for c in (*PLACES, DOCUMENT))
                good &= (source >= 0) & (start >= 0) & (stop > start) & ~(document < 0)  # null is NaN
            if not good.all():
                place = int(np.flatnonzero(~good)[0])
                _checked(next(_records(table.slice(place, 1))), row + place, shard)
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
        if not is_example_schema(schema) or metadata.num_rows != shard.rows:
            raise IndexCorruptedError(
                shard.file,
                f"it has {metadata.num_rows} rows of {', '.join(schema.names)[:500]}; expected {shard.rows} of "
                f"{', '.join(SCHEMA.names)}, and plain columns of the owner's behind them",
            )
        # Texts stay dictionaries until a row is taken: a small file could repeat a long one without end.
        texts = [field.name for field in schema if field.type == pa.string()]
        with pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, read_dictionary=texts) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, LorifError):
            raise
        raise IndexCorruptedError(shard.file, f"it is no Parquet file ({error})") from error


def _plain(schema: pa.Schema) -> Iterator[pa.Field]:
    """The columns as they were written, dictionaries as what they hold."""
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        yield pa.field(field.name, kind)


def _read_group(file: pq.ParquetFile, shard: Shard, group: int, columns: list[str]) -> pa.Table:
    """Columns of one row group, unless it would unpack to far more than its file can mean."""
    unpacked = file.metadata.row_group(group).total_byte_size
    if unpacked > _MOST_UNPACKED * (shard.bytes + 1024):
        raise IndexCorruptedError(shard.file, f"{shard.bytes} bytes claim to unpack to {unpacked}")
    return file.read_row_group(group, columns=columns)


def _python(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column. A text that is repeated is there once."""
    values: list[Any] = []
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            held = chunk.dictionary.to_pylist()
            values += [None if place is None else held[place] for place in chunk.indices.to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def _records(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table."""
    columns = [_python(column) for column in table.columns]
    return (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))


def _checked(example: dict[str, Any], row: int, shard: Shard) -> dict[str, Any]:
    """An example whose row number is its place and whose values are finite."""
    needed = [example[name] for name in NUMBERS]
    finite = all(math.isfinite(value) for value in example.values() if isinstance(value, float))
    if example["row"] != row or None in needed or not finite:
        raise IndexCorruptedError(shard.file, f"row {row} calls itself {example['row']} or holds no finite numbers")
    if DOCUMENT in example:
        source, start, stop = (example[name] for name in PLACES)
        known = None not in (source, start, stop) and source >= 0 and 0 <= start < stop
        if not known or not (example[DOCUMENT] is None or example[DOCUMENT] >= 0):
            raise IndexCorruptedError(
                shard.file,
                f"row {row} is tokens {start} to {stop} of row {source} of its dataset, document {example[DOCUMENT]}",
            )
    return example
