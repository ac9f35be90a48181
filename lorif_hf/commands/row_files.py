"""The training set of a build: a local file, a folder that `datasets` saved, or a dataset of the Hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DatasetError
from .slips import in_a_line, told_as


if TYPE_CHECKING:
    from datasets import Dataset

_READERS = {".jsonl": "from_json", ".json": "from_json", ".csv": "from_csv", ".parquet": "from_parquet"}
_KINDS = "a file .txt (a row on each line), .jsonl, .json, .csv or .parquet"


def training_rows(data: str, subset: str | None, split: str | None, token: str | None) -> "Dataset":
    """The rows of a training set, in their order.

    Args:
        data (`str`): a local file, a folder of `Dataset.save_to_disk`, or a dataset's id on the Hub.
        subset (`str`, *optional*): of a dataset on the Hub that has several.
        split (`str`, *optional*): of a dataset with splits; also a slice, "train[:1000]". By default "train" or, where
            there is one alone, that.
        token (`str`, *optional*): for the Hub.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: names the file, and the line where it is one.
    """
    path = Path(data)
    if path.is_dir():
        rows = _saved(path, split)
    elif path.exists() or path.suffix.lower() in (".txt", *_READERS):
        if subset is not None or split is not None:
            raise DatasetError(f"{path} is a file: --subset and --split are of datasets on the Hub; leave them out.")
        rows = _from_file(path)
    else:
        rows = _from_hub(data, subset, split, token)
    if not len(rows):
        raise DatasetError(f"{data} holds no row: there is nothing to index.")
    return rows


def _from_file(path: Path) -> "Dataset":
    import datasets

    suffix = path.suffix.lower()
    with open(path, "rb") as file:  # what cannot be read is told in the system's words
        empty = not file.read(1 << 16).strip()
    if suffix == ".txt":
        return _lines(path)
    if suffix not in _READERS:
        raise DatasetError(
            f"{path} is no training set: expected {_KINDS}, a folder that `datasets` saved, or a Hub id."
        )
    if empty:
        raise DatasetError(f"{path} is empty: expected {_KINDS}.")
    # Of a table of texts, "NA" and "null" are texts too.
    options: dict[str, Any] = {"keep_default_na": False} if suffix == ".csv" else {}
    try:
        rows: Dataset = getattr(datasets.Dataset, _READERS[suffix])(str(path), **options)
    except Exception as error:
        broken = _broken_line(path) if suffix == ".jsonl" else None
        if suffix == ".csv" and "corresponds to no data" in str(error):
            broken = f"{path} holds no row below its head: there is nothing to index."
        cause = error.__cause__ or error
        raise DatasetError(
            broken or f"{path} cannot be read ({in_a_line(cause)}): expected a table as {suffix} files hold it."
        ) from error
    return rows


def _lines(path: Path) -> "Dataset":
    """A row for each line that holds anything, named by its number from 1."""
    import datasets

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    lines = text.replace("\r\n", "\n").split("\n")
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return datasets.Dataset.from_dict(
        {"text": [line for _, line in kept], "example_id": [f"line {number}" for number, _ in kept]}
    )


def _broken_line(path: Path) -> str | None:
    """What is said of the first line that is no JSON object; `None`: all are."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                return f"{path}, line {number} is not JSON ({error}): mend it, or take it out."
            if not isinstance(value, dict):
                return f"{path}, line {number} is no JSON object: expected columns by name on each line."
    return None


def _saved(folder: Path, split: str | None) -> "Dataset":
    import datasets

    way_out = f"Expected a folder that Dataset.save_to_disk made, {_KINDS}, or a Hub id."
    with told_as(DatasetError, f"{folder} holds no dataset", way_out):
        rows = datasets.load_from_disk(str(folder))
    return _one_split(rows, str(folder), split)


def _from_hub(name: str, subset: str | None, split: str | None, token: str | None) -> "Dataset":
    import datasets

    way_out = (
        f"Expected {_KINDS}, or a dataset's id on the Hub; check the name, --subset and --split. For a private one "
        "log in (hf auth login) or pass --token."
    )
    with told_as(DatasetError, f"No dataset can be loaded from {name}", way_out):
        rows = datasets.load_dataset(name, subset, split=split, token=token)
    return _one_split(rows, name, split)


def _one_split(rows: Any, name: str, split: str | None) -> "Dataset":
    """A dataset out of its splits."""
    if not isinstance(rows, dict):
        return rows  # type: ignore[no-any-return]
    wanted = split or ("train" if "train" in rows or len(rows) != 1 else next(iter(rows)))
    if wanted not in rows:
        raise DatasetError(f"{name} has no split '{wanted}': pass --split with one of {', '.join(rows)}.")
    return rows[wanted]  # type: ignore[no-any-return]
