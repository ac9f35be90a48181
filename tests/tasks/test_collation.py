"""Padding of features that come without a collator."""

import datetime

import pytest
import torch

from lorif_hf.errors import DatasetError
from lorif_hf.tasks.collation import PaddingCollator


def test_padding():
    batch = PaddingCollator(9)(
        [
            {"input_ids": [1, 2, 3], "labels": [4, 5, 6], "token_type_ids": [1, 1, 1]},
            {"input_ids": [7], "labels": [8], "token_type_ids": [1]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [7, 9, 9]]
    assert batch["labels"].tolist() == [[4, 5, 6], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert all(value.dtype == torch.int64 for value in batch.values())


@pytest.mark.parametrize("pad", [None, 0])
def test_padding_token_defaults_to_zero(pad):
    batch = PaddingCollator(pad)([{"input_ids": [1, 2]}, {"input_ids": [3]}])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 0]]


def test_a_given_mask_is_kept():
    batch = PaddingCollator()([{"input_ids": [1, 2], "attention_mask": [0, 1]}, {"input_ids": [3]}])
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 0]]


def test_made_labels_leave_out_what_is_masked():
    features = [{"input_ids": [1, 2, 3], "attention_mask": [0, 1, 1]}, {"input_ids": [4, 5]}]
    assert PaddingCollator(make_labels=True)(features)["labels"].tolist() == [[-100, 2, 3], [4, 5, -100]]
    assert "labels" not in PaddingCollator()(features)


def test_made_labels_do_not_replace_given_ones():
    features = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4]}]
    assert PaddingCollator(make_labels=True)(features)["labels"].tolist() == [[-100, 2], [3, 4]]


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [([2, 0], torch.int64), ([0.5, 1.5], torch.float32), ([[0.0, 1.0], [1.0, 1.0]], torch.float32)],
)
def test_labels_of_classifiers(name, values, dtype):
    batch = PaddingCollator()([{"input_ids": [1, 2], name: values[0]}, {"input_ids": [3], name: values[1]}])
    assert batch["labels"].tolist() == values and batch["labels"].dtype == dtype
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_tensors_and_arrays():
    features = [{"x": torch.ones(2, 3)}, {"x": torch.zeros(2, 3).numpy()}]
    assert PaddingCollator()(features)["x"].shape == (2, 2, 3)


@pytest.mark.parametrize(
    "value",
    ["a text", b"bytes", {"a": 1}, None, ["a", "b"], [[1], [2, 3]], [{"role": "user", "content": "x"}], [None, 1]],
    ids=repr,
)
def test_what_is_no_tensor_is_left_behind(value):
    """Names, texts, chats and missing values ride along in datasets."""
    batch = PaddingCollator()([{"input_ids": [1], "other": value}])
    assert set(batch) == {"input_ids", "attention_mask"}


def test_dates_are_left_behind():
    batch = PaddingCollator()([{"input_ids": [1], "other": datetime.datetime(2026, 1, 1)}])
    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_column_that_only_some_rows_have_is_left_out():
    batch = PaddingCollator()([{"input_ids": [1], "extra": 1}, {"input_ids": [2]}])
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("order", [1, -1])
def test_an_empty_row_is_padding_only(order):
    """Empty lines of a text corpus; the tokens stay integers, whichever row comes first."""
    features = [{"input_ids": []}, {"input_ids": [3, 4]}][::order]
    batch = PaddingCollator(make_labels=True)(features)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[0, 0], [3, 4]][::order]
    assert batch["attention_mask"].tolist() == [[0, 0], [1, 1]][::order]
    assert batch["labels"].tolist() == [[-100, -100], [3, 4]][::order]


def test_matrices_of_different_shapes_are_an_error():
    features = [{"image": torch.ones(3, 4)}, {"image": torch.ones(3, 5)}]
    with pytest.raises(DatasetError, match=r"'image' has rows of different shapes \(\(3, 4\), \(3, 5\)\).*collator"):
        PaddingCollator()(features)


def test_batches_do_not_share_memory_with_the_features():
    ids = torch.tensor([1, 2])
    batch = PaddingCollator(make_labels=True)([{"input_ids": ids}, {"input_ids": ids}])
    batch["labels"].fill_(-100)
    batch["input_ids"].fill_(0)
    assert ids.tolist() == [1, 2]
