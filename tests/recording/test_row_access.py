"""Datasets as people bring them: read by number, or refused with what to do."""

from dataclasses import dataclass

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import IterableDataset, Subset, TensorDataset

from lorif_hf.errors import DatasetError
from lorif_hf.recording.row_access import column, columns_of, named_rows, read_rows, readable


TABLE = Dataset.from_dict({"input_ids": [[1, 2], [3], [4]], "text": ["a", "b", "c"], "label": [0, 1, 0]})


class Stream(IterableDataset):
    def __iter__(self):
        yield {"input_ids": [1]}

    def __len__(self):
        return 1


class Rows:
    """Map-style, from a function of the row's number."""

    def __init__(self, read, count=5):
        self.read, self.count = read, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.read(row)


class Together(Rows):
    def __getitems__(self, rows):
        return [self.read(row) for row in rows]


class Unsized(Rows):
    def __len__(self):
        raise NotImplementedError


@dataclass
class Example:
    input_ids: list
    label: int = 0


@pytest.mark.parametrize("form", ["arrow", "pandas", "polars", "numpy", "torch", None])
def test_every_format_of_a_dataset(form):
    if form == "polars":
        pytest.importorskip("polars")
    dataset, count = readable(TABLE.with_format(form))
    rows = read_rows(dataset, [2, 0])
    assert count == 3 and [list(map(int, row["input_ids"])) for row in rows] == [[4], [1, 2]]
    assert [str(row["text"]) for row in rows] == ["c", "a"] and columns_of(dataset) == TABLE.column_names


def test_the_columns_of_a_format_are_kept():
    dataset, _ = readable(TABLE.with_format("arrow", columns=["input_ids"]))
    assert read_rows(dataset, [1, 2]) == [{"input_ids": [3]}, {"input_ids": [4]}]


def test_a_transform_is_kept():
    dataset, _ = readable(TABLE.with_transform(lambda rows: {"length": [len(ids) for ids in rows["input_ids"]]}))
    assert read_rows(dataset, [0, 1]) == [{"length": 2}, {"length": 1}] and read_rows(dataset, [0]) == [{"length": 2}]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "is a Stream, which can only be read in order, so its rows have no number. Load it as a map-style"),
        (TABLE.to_iterable_dataset(), "is a IterableDataset, which has no length, so its rows have no number"),
        (iter([1]), "which has no length"),
        ({1, 2}, "which can only be read in order"),
        (3, "is a int, which has no length"),
        (
            Unsized(dict),
            "is a Unsized, which has no length, so its rows have no number. Load it as a map-style dataset",
        ),
        (DatasetDict(train=TABLE), r"is a DatasetDict, not rows: pass one of its splits, dataset\['train'\]"),
        ({"input_ids": [[1]]}, "is a dict, not rows.*from_dict"),
        ({}, "is a dict, not rows"),
        (TABLE.to_pandas(), r"is a DataFrame, whose items are not its rows. Pass datasets.Dataset.from_pandas\(it\)"),
        (TABLE.data.table, r"is a Table, whose items are not its rows. Pass datasets.Dataset\(it\)"),
        (pandas.Series([1]), "is a Series, whose items are not its rows"),
        (pyarrow.array([1]), "is a Int64Array, whose items are not its rows"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_numbered_rows_is_refused(dataset, message):
    with pytest.raises(DatasetError, match=message):
        readable(dataset)
    with pytest.raises(DatasetError, match="examples"):
        readable(dataset, "examples")


@pytest.mark.parametrize(
    "dataset",
    [TABLE, [{"a": 1}], ({"a": 1},), Rows(dict), Together(dict), Subset(TABLE, [1]), TensorDataset(torch.ones(3, 2))],
    ids=lambda value: type(value).__name__,
)
def test_what_has_numbered_rows_is_taken(dataset):
    assert readable(dataset) == (dataset, len(dataset))


def fails_at(row_that_fails, error):
    def read(row):
        if row == row_that_fails:
            raise error
        return {"input_ids": [row]}

    return read


@pytest.mark.parametrize("kind", [Rows, Together])
@pytest.mark.parametrize(
    "error", [KeyError("audio"), OSError("no such file"), IndexError("5"), RuntimeError("decoding"), ValueError("x")]
)
def test_a_row_that_cannot_be_read_is_named(kind, error):
    dataset = kind(fails_at(3, error))
    for rows in ([3], [1, 3, 2], range(5)):
        with pytest.raises(DatasetError, match=rf"Row 3 of the dataset could not be read \({type(error).__name__}"):
            read_rows(dataset, rows)
    assert read_rows(dataset, [4, 1]) == [{"input_ids": [4]}, {"input_ids": [1]}]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory"), DatasetError("ours")])
@pytest.mark.parametrize("kind", [Rows, Together])
def test_a_lack_of_memory_and_our_own_errors_pass(kind, error):
    with pytest.raises(type(error)) as raised:
        read_rows(kind(fails_at(3, error)), [3, 4])
    assert raised.value is error


def test_a_dataset_that_is_shorter_than_it_says():
    class Short(list):
        def __len__(self):
            return 5

    with pytest.raises(DatasetError, match=r"Row 2 of the dataset could not be read \(IndexError"):
        read_rows(Short([{}, {}]), range(5))


def test_together_is_not_trusted_with_the_number_of_rows():
    class Fewer(Rows):
        def __getitems__(self, rows):
            return [self.read(rows[0])]

    assert read_rows(Fewer(lambda row: {"row": row}), [1, 2]) == [{"row": 1}, {"row": 2}]


def test_dataclasses_are_rows():
    dataset = [Example([1, 2], 1), Example([3])]
    assert read_rows(dataset, [0, 1]) == [{"input_ids": [1, 2], "label": 1}, {"input_ids": [3], "label": 0}]
    assert columns_of(dataset) == ["input_ids", "label"] and column(dataset, "label", 0, 2) == [1, 0]


def test_columns():
    mixed = [{"a": 1, "b": 2}, {"a": np.int64(3)}, None, (1, 2)]
    assert columns_of(mixed) == ["a", "b"] and columns_of([(1, 2)]) == [] and columns_of([None]) == []
    assert column(mixed, "b", 0, 4) == [2, None, None, None]
    assert list(column(TABLE, "text", 1, 3)) == ["b", "c"]


def test_how_rows_are_named():
    assert named_rows([3]) == "Row 3" and named_rows([1, 5]) == "Rows 1, 5"
    assert named_rows(range(20)) == "Rows 0, 1, 2, 3, 4, 5, 6, 7, ..."
