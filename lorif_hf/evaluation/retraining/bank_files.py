"""The files of a bank of retrained models, which may come from anybody: all that is read is checked."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ...errors import EvaluationError


BANK_VERSION = "1.0"
BANK = "bank.json"
RUNS = "data/runs.parquet"
QUERIES = "data/queries.parquet"
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


def runs_columns(membership: Tensor, losses_by_seed: Tensor, seeds: Sequence[int]) -> dict[str, list[Any]]:
    """One row per run, as people and [`read_runs`] see them: all seeds of subset 0, then those of subset 1, ...

    Args:
        membership (`Tensor`): booleans (M, N).
        losses_by_seed (`Tensor`): (k, M, Q).
        seeds (`Sequence[int]`): k.
    """
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
    except (ValueError, RecursionError) as error:
        if isinstance(error, EvaluationError):
            raise
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
    seeds = info.get("seeds")
    good = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    _require(good and 0 < len(set(seeds)) == len(seeds), "'seeds' must be a list of different natural numbers")
    _require(isinstance(info.get("queries"), str), "'queries' must be a fingerprint")
    _require(isinstance(info["dataset"].get("fingerprint"), str), "'dataset' must hold a fingerprint")
    _require(isinstance(info["model"].get("model_class"), str), "'model' must hold the model_class")
    table = info["model"].get("parameters")
    _require(
        isinstance(table, dict) and all(isinstance(shape, list) for shape in table.values()),
        "'model' must hold the shapes of the parameters",
    )
    _require(info["num_subsets"] > 1 and info["subset_size"] < info["num_examples"], "it has no proper subsets")
    files = info.pop("files")
    for name in (RUNS, QUERIES):
        entry = files.get(name)
        good = isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
        _require(good, f"'files' must hold the size and hash of {name}")
    return info, files


def read_runs(content: bytes, info: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Membership, booleans (M, N), and losses, float64 (k, M, Q).

    Args:
        content (`bytes`): the file.
        info (`Mapping`): the checked values of `bank.json`.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: before anything larger than the file can account for is allocated.
    """
    rows, subsets, size = info["num_examples"], info["num_subsets"], info["subset_size"]
    queries, seeds = info["num_queries"], info["seeds"]
    file = _opened(RUNS, content, subsets * len(seeds))
    if not file.schema_arrow.equals(_SCHEMA):
        raise bad_file(RUNS, f"its columns are {', '.join(file.schema_arrow.names)}, not {', '.join(_SCHEMA.names)}")
    needed = subsets * len(seeds) * (math.ceil(rows / 8) + 8 * queries)
    if needed > _MOST_UNPACKED * (len(content) + 1024):
        raise bad_file(RUNS, f"{len(content)} bytes cannot hold runs of {rows} rows and {queries} queries")
    membership = np.zeros((subsets, rows), dtype=bool)
    losses = np.empty((len(seeds), subsets, queries))
    for number, run in enumerate(_rows(RUNS, file)):
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


def read_queries(content: bytes, count: int) -> list[dict[str, Tensor]]:
    """The queries as tensors.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: another number of them, or something else than numbers.
    """
    features = []
    for number, row in enumerate(_rows(QUERIES, _opened(QUERIES, content, count))):
        try:
            features.append({key: torch.as_tensor(value) for key, value in row.items()})
        except (TypeError, ValueError, RuntimeError) as error:
            raise bad_file(QUERIES, f"query {number} is not made of numbers ({error})") from error
    return features


def _opened(name: str, content: bytes, count: int) -> pq.ParquetFile:
    """A Parquet file with so many rows, that unpacks to no more than it can mean."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise bad_file(name, f"it is no Parquet file ({error})") from error
    metadata = file.metadata
    if metadata.num_rows != count:
        raise bad_file(name, f"it has {metadata.num_rows} rows, {BANK} says {count}")
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if unpacked > _MOST_UNPACKED * (len(content) + 1024):
        raise bad_file(name, f"{len(content)} bytes claim to unpack to {unpacked}")
    return file


def _rows(name: str, file: pq.ParquetFile) -> Any:
    """Row by row: a small file could repeat a long one without end."""
    try:
        for batch in file.iter_batches(batch_size=1):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise bad_file(name, f"it cannot be read ({error})") from error


def _parquet(table: pa.Table) -> bytes:
    """A Parquet file; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _require(condition: bool, problem: str) -> None:
    """Raises the error for `bank.json` where a condition does not hold."""
    if not condition:
        raise bad_file(BANK, problem)
