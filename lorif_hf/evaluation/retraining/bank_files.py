"""The files of a bank of retrained models, which may come from anybody: all that is read is checked."""

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ...errors import EvaluationError
from ...storage.layout import inside
from .runs import Feature, plain_features, queries_fingerprint


BANK_VERSION = "1.0"
BANK = "bank.json"
RUNS = "data/runs.parquet"
QUERIES = "data/queries.parquet"
_LARGEST_INFO = 1 << 25  # bytes of JSON that are read at all
_MOST_UNPACKED = 100  # times its size that a file may unpack to

_SCHEMA = pa.schema(
    [
        ("subset", pa.int64()),
        ("seed", pa.int64()),
        ("num_examples", pa.int64()),
        ("membership", pa.binary()),
        ("losses", pa.list_(pa.float64())),
    ]
)
_COUNTS = ("num_examples", "num_queries", "num_subsets", "subset_size")
_OBJECTS = ("objective", "dataset", "model", "training", "files")


def bad_file(name: str, problem: str) -> EvaluationError:
    """The error for a file of a bank that is not what it should be."""
    return EvaluationError(
        f"{name}: {problem}. It was truncated, edited or damaged in transfer: restore or download the bank again, or "
        "retrain."
    )


def to_files(
    info: Mapping[str, Any], membership: Tensor, losses_by_seed: Tensor, queries: Sequence[Feature]
) -> dict[str, bytes]:
    """Every file of a bank but the card, `bank.json` last; equal banks give equal bytes."""
    contents = {
        RUNS: write_runs(runs_columns(membership, losses_by_seed, info["seeds"])),
        QUERIES: write_queries(plain_features(queries)),
    }
    table = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    text = json.dumps({**info, "files": table}, indent=2, sort_keys=True) + "\n"
    return contents | {BANK: text.encode()}


def from_files(folder: Path) -> tuple[Tensor, Tensor, list[Feature], dict[str, Any]]:
    """Membership, losses by seed, queries and info of the bank in a folder.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: a file is not what it should be; names it.
    """
    if inside(folder, BANK).stat().st_size > _LARGEST_INFO:
        raise bad_file(BANK, f"it has over {_LARGEST_INFO:,} bytes")
    info, entries = parse_info((folder / BANK).read_text(encoding="utf-8", errors="replace"))
    membership, losses = read_runs(_checked(folder, RUNS, entries[RUNS]), info)
    queries = read_queries(_checked(folder, QUERIES, entries[QUERIES]), info["num_queries"])
    if queries_fingerprint(queries) != info["queries"]:
        raise bad_file(QUERIES, f"these are not the queries whose fingerprint is in {BANK}")
    return membership, losses, queries, info


def _checked(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """The content of a file, which is what `bank.json` says."""
    path = inside(folder, name)
    size = path.stat().st_size if path.is_file() else None
    if size != entry["bytes"]:
        fault = "it is missing" if size is None else f"it has {size} bytes"
        raise bad_file(name, f"{fault}, {BANK} says {entry['bytes']}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise bad_file(name, f"its SHA-256 is not the one in {BANK}")
    return content


def runs_columns(membership: Tensor, losses_by_seed: Tensor, seeds: Sequence[int]) -> dict[str, list[Any]]:
    """One row per run, as people and [`read_runs`] see them: all seeds of subset 0, then those of subset 1, ..."""
    subsets, packed = range(len(membership)), np.packbits(membership.numpy(), axis=1)
    return {
        "subset": [subset for subset in subsets for _ in seeds],
        "seed": [seed for _ in subsets for seed in seeds],
        "num_examples": [int(size) for size in membership.sum(dim=1) for _ in seeds],
        "membership": [packed[subset].tobytes() for subset in subsets for _ in seeds],
        "losses": losses_by_seed.transpose(0, 1).flatten(0, 1).tolist(),
    }


def write_runs(columns: Mapping[str, list[Any]]) -> bytes:
    """The Parquet file of the columns of [`runs_columns`]."""
    return _parquet(pa.table(dict(columns), schema=_SCHEMA))


def write_queries(features: Sequence[Mapping[str, Any]]) -> bytes:
    """The Parquet file of queries as JSON values, one a row."""
    return _parquet(pa.table({key: [feature[key] for feature in features] for key in features[0]}))


def parse_info(text: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `bank.json` says of the bank, and of its files.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: it is no such file, of a later format, or holds an impossible value.
    """
    try:
        info = json.loads(text, parse_constant=lambda name: _require(False, f"it holds {name}"))
    except EvaluationError:
        raise
    except (ValueError, RecursionError) as error:
        raise bad_file(BANK, f"it is not JSON ({error})") from error
    _require(isinstance(info, dict) and isinstance(info.get("format_version"), str), "it has no format_version")
    if not info["format_version"].startswith("1."):
        raise EvaluationError(
            f"This bank has format version {info['format_version'][:20]!r}; this lorif-hf reads 1.x. Install a newer "
            "one: pip install --upgrade lorif-hf."
        )
    for name in _COUNTS:
        _require(type(info.get(name)) is int and 0 < info[name] < 2**40, f"'{name}' must be a natural number")
    for name in _OBJECTS:
        _require(isinstance(info.get(name), dict), f"'{name}' must be a JSON object")
    _require(info["num_subsets"] > 1 and info["subset_size"] < info["num_examples"], "it has no proper subsets")
    seeds, shapes, files = info.get("seeds"), info["model"].get("parameters"), info.pop("files")
    good = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    _require(good and 0 < len(set(seeds)) == len(seeds), "'seeds' must be a list of different natural numbers")
    _require(isinstance(info.get("queries"), str), "'queries' must be a fingerprint")
    _require(isinstance(info["dataset"].get("fingerprint"), str), "'dataset' must hold a fingerprint")
    _require(isinstance(info["model"].get("model_class"), str), "'model' must hold the model_class")
    good = isinstance(shapes, dict) and all(isinstance(shape, list) for shape in shapes.values())
    _require(good, "'model' must hold the shapes of the parameters")
    for name in (RUNS, QUERIES):
        entry = files.get(name)
        good = isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
        _require(good, f"'files' must hold the size and hash of {name}")
    return info, files


def read_runs(content: bytes, info: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Membership, booleans (M, N), and losses, float64 (k, M, Q), that the checked values of `bank.json` announce.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: before anything larger than the file can account for is allocated.
    """
    rows, subsets, size = info["num_examples"], info["num_subsets"], info["subset_size"]
    queries, seeds = info["num_queries"], info["seeds"]
    count = subsets * len(seeds)
    needed = count * (math.ceil(rows / 8) + 8 * queries)
    if needed > _MOST_UNPACKED * (len(content) + 1024):
        raise bad_file(RUNS, f"{len(content)} bytes cannot hold runs of {rows} rows and {queries} queries")
    membership = np.zeros((subsets, rows), dtype=bool)
    losses = np.empty((len(seeds), subsets, queries))
    for number, run in enumerate(_rows(RUNS, content, count, _SCHEMA)):
        subset, seed = divmod(number, len(seeds))
        expected = {"subset": subset, "seed": seeds[seed], "num_examples": size}
        actual = {name: run[name] for name in expected}
        if actual != expected:
            raise bad_file(RUNS, f"row {number} is of {actual}, expected {expected}")
        packed, values = run["membership"], run["losses"]
        if packed is None or len(packed) != math.ceil(rows / 8):
            raise bad_file(RUNS, f"the membership of row {number} is not that of {rows} training rows")
        members = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=rows).astype(bool)
        if members.sum() != size or (seed and not np.array_equal(members, membership[subset])):
            raise bad_file(RUNS, f"the membership of row {number} is not that of one subset of {size} rows")
        if values is None or len(values) != queries:
            raise bad_file(RUNS, f"row {number} does not have the losses of {queries} queries")
        if not all(loss is not None and math.isfinite(loss) for loss in values):
            raise bad_file(RUNS, f"the losses of row {number} are not all finite numbers")
        membership[subset], losses[seed, subset] = members, values
    return torch.from_numpy(membership), torch.from_numpy(losses)


def read_queries(content: bytes, count: int) -> list[Feature]:
    """The queries as tensors.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: another number of them, or something else than numbers.
    """
    features = []
    for number, row in enumerate(_rows(QUERIES, content, count)):
        try:
            features.append({key: torch.as_tensor(value) for key, value in row.items()})
        except (TypeError, ValueError, RuntimeError) as error:
            raise bad_file(QUERIES, f"query {number} is not made of numbers ({error})") from error
    return features


def _rows(name: str, content: bytes, count: int, schema: pa.Schema | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file of so many, one by one: a small file could repeat a long one without end."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        metadata, columns = file.metadata, file.schema_arrow
        if metadata.num_rows != count:
            raise bad_file(name, f"it has {metadata.num_rows} rows, {BANK} says {count}")
        if schema is not None and not columns.equals(schema):
            raise bad_file(name, f"its columns are {', '.join(columns.names)}, not {', '.join(schema.names)}")
        unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if unpacked > _MOST_UNPACKED * (len(content) + 1024):
            raise bad_file(name, f"{len(content)} bytes claim to unpack to {unpacked}")
        for batch in file.iter_batches(batch_size=1):
            yield from batch.to_pylist()
    except EvaluationError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise bad_file(name, f"it is no Parquet file ({error})") from error


def _parquet(table: pa.Table) -> bytes:
    """A Parquet file; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _require(condition: bool, problem: str) -> None:
    """Raises the error for `bank.json` where a condition does not hold."""
    if not condition:
        raise bad_file(BANK, problem)
