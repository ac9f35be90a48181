"""Reading the rows of a dataset: whatever goes wrong there names the row."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from ..errors import DatasetError, LorifError, out_of_memory


TABLES = {"pandas": "Dataset.from_pandas", "polars": "Dataset.from_polars", "pyarrow": "Dataset"}
_MEDIA = {"Image", "Audio", "Video", "Pdf", "Nifti", "Array2D", "Array3D", "Array4D", "Array5D"}
_TABLE_FORMATS = ("arrow", "pandas", "polars")


def readable(dataset: Any, called: str = "The dataset") -> tuple[Any, int]:
    """A map-style dataset whose rows are dicts of columns where it says which form they have, and their number.

    Rows of a `datasets.Dataset` formatted as tables (of Arrow, pandas or polars) are read unformatted.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: its rows have no number.
    """
    kind = type(dataset).__name__
    maker = TABLES.get(type(dataset).__module__.partition(".")[0])
    if maker:
        raise DatasetError(f"{called} is a {kind}, whose items are not its rows. Pass datasets.{maker}(it).")
    if isinstance(dataset, Mapping):
        named = f"'{next(iter(dataset))}'" if dataset else "name"
        raise DatasetError(
            f"{called} is a {kind}, not rows: pass one of its splits, dataset[{named}], or "
            "datasets.Dataset.from_dict(it) where these are columns."
        )
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError):
        raise DatasetError(f"{called} is a {kind}, which has no length, so its rows have no number. {_MAP}") from None
    if isinstance(dataset, IterableDataset) or not hasattr(type(dataset), "__getitem__"):
        raise DatasetError(
            f"{called} is a {kind}, which can only be read in order, so its rows have no number. {_MAP}"
        )
    form = getattr(dataset, "format", None)
    if isinstance(form, dict) and form.get("type") in _TABLE_FORMATS:
        every = form["output_all_columns"]
        dataset = dataset.with_format(None, columns=form["columns"], output_all_columns=every)
    return dataset, count


_MAP = (
    "Load it as a map-style dataset (datasets.load_dataset without streaming, or Dataset.from_generator), whose items "
    "are its rows."
)


def as_written(dataset: Any) -> Any:
    """A `datasets.Dataset` with the columns that it was made with, as people may read them: no transform makes others
    of them on the way, and those that take long to decode and say nothing are left out. Anything else as it is."""
    form = getattr(dataset, "format", None)
    if isinstance(form, Mapping) and form.get("type") == "custom":
        dataset = dataset.with_format(None)
    return without_media(dataset)


def without_media(dataset: Any) -> Any:
    """A `datasets.Dataset` without the columns that take long to decode and say nothing."""
    features, form = getattr(dataset, "features", None), getattr(dataset, "format", None)
    if not isinstance(features, Mapping) or not isinstance(form, Mapping) or form.get("type") == "custom":
        return dataset
    media = {name for name, feature in features.items() if type(feature).__name__ in _MEDIA}
    return dataset.select_columns([name for name in form["columns"] if name not in media]) if media else dataset


def read_rows(dataset: Any, row_ids: Sequence[int], called: str = "the dataset") -> list[Any]:
    """Rows by number, dataclasses as dicts.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: names the row that could not be read.
    """
    together = getattr(dataset, "__getitems__", None)
    if together is not None and len(row_ids) > 1:
        try:
            rows = list(together(list(row_ids)))
            if len(rows) == len(row_ids):
                return [_as_dict(row) for row in rows]
        except Exception as error:  # below, one by one, shows in which row
            if must_pass(error):
                raise
    rows = []
    for row in row_ids:
        try:
            rows.append(_as_dict(dataset[row]))
        except Exception as error:
            if must_pass(error):
                raise
            raise DatasetError(
                f"Row {row} of {called} could not be read ({type(error).__name__}: {error}). Mend it, or leave it out "
                "of the training and of the index alike."
            ) from error
    return rows


def must_pass(error: Exception) -> bool:
    """Whether an error is for somebody else: ours, or a lack of memory, after which fewer rows are tried."""
    return isinstance(error, LorifError) or out_of_memory(error)


def columns_of(dataset: Any) -> list[str]:
    """Names of the columns; none where the rows are no dicts."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return names
    (first,) = read_rows(dataset, [0])
    return [str(name) for name in first] if isinstance(first, Mapping) else []


def column(dataset: Any, name: str, start: int, stop: int) -> Sequence[Any]:
    """A column's values in rows `start` to `stop`; `None` in a row without it."""
    if isinstance(getattr(dataset, "column_names", None), list):
        return dataset[start:stop][name]
    rows = read_rows(dataset, range(start, stop))
    return [row.get(name) if isinstance(row, Mapping) else None for row in rows]


def named_rows(row_ids: Sequence[int]) -> str:
    """How an error names rows, at the beginning of a sentence."""
    if len(row_ids) == 1:
        return f"Row {row_ids[0]}"
    shown = ", ".join(map(str, row_ids[:8]))
    return f"Rows {shown}, ..." if len(row_ids) > 8 else f"Rows {shown}"


def _as_dict(row: Any) -> Any:
    if dataclasses.is_dataclass(row) and not isinstance(row, (type, Mapping)):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return row
