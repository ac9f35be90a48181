"""Padding of features that come without a collator."""

import datetime

import numpy as np
import pytest
import torch

from lorif_hf.errors import DatasetError
from lorif_hf.tasks.collation import PaddingCollator, computable, goes_with, joined, with_a_token


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


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("name", ["input_ids", "labels", "token_type_ids", "attention_mask", "decoder_input_ids"])
def test_ids_labels_and_masks_are_int64(dtype, name):
    features = [{name: np.array([1, 1, 0]).astype(dtype)}, {name: np.array([1]).astype(dtype)}]
    batch = PaddingCollator()(features)
    pad = -100 if name == "labels" else 0
    assert batch[name].dtype == torch.int64 and batch[name].tolist() == [[1, 1, 0], [1, pad, pad]]


def test_other_columns_keep_their_dtype():
    for dtype in (torch.bool, torch.uint8, torch.float16, torch.int16):
        assert computable("bool_masked_pos", torch.ones(2, dtype=dtype)).dtype == dtype
    assert computable("pixels", torch.ones(2, dtype=torch.uint16)).dtype == torch.int64
    assert computable("attention_mask", torch.ones(1, 4, 4, dtype=torch.bool)).dtype == torch.bool
    assert computable("labels", torch.ones(2)).dtype == torch.float32


def test_single_labels_of_every_dtype():
    for label in (True, np.bool_(True), np.int16(1), np.uint16(1), torch.tensor(1, dtype=torch.uint8)):
        batch = PaddingCollator()([{"input_ids": [1], "label": label}, {"input_ids": [1], "label": label}])
        assert batch["labels"].tolist() == [1, 1] and batch["labels"].dtype == torch.int64


def test_empty_rows_alone_get_a_token_of_padding():
    batch = {"input_ids": torch.zeros(2, 0), "labels": torch.zeros(2, 0), "label": torch.ones(2), "names": ["a", "b"]}
    padded = with_a_token(batch, {"input_ids": 9, "labels": -100})
    assert padded["input_ids"].tolist() == [[9], [9]] and padded["labels"].tolist() == [[-100], [-100]]
    assert padded["attention_mask"].tolist() == [[0], [0]] and padded["label"] is batch["label"]
    for whole in ({"input_ids": torch.ones(2, 1)}, {"pixels": torch.zeros(2, 0)}, {"input_ids": [[]]}):
        assert with_a_token(whole, {}) is whole


def test_rows_of_choices_are_padded_on_their_last_axis():
    batch = PaddingCollator(9)([{"input_ids": [[1, 2], [3, 4]], "labels": 1}, {"input_ids": [[5], [6]], "labels": 0}])
    assert batch["input_ids"].tolist() == [[[1, 2], [3, 4]], [[5, 9], [6, 9]]]
    assert batch["attention_mask"].tolist() == [[[1, 1], [1, 1]], [[1, 0], [1, 0]]]
    assert batch["labels"].tolist() == [1, 0]


PICTURE = torch.ones(3, 4, 4)


@pytest.mark.parametrize(
    "first, second, together, unpadded",
    [
        ({"input_ids": [1, 2]}, {"input_ids": [3]}, True, False),
        ({"input_ids": [1, 2]}, {"input_ids": [3, 4]}, True, True),
        ({"input_ids": [1]}, {"input_ids": [1], "labels": [1]}, False, False),
        ({"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3], "labels": [3]}, True, False),
        ({"input_ids": [1], "labels": 1}, {"input_ids": [1], "labels": [1]}, False, False),
        ({"input_ids": [[1, 2], [3, 4]]}, {"input_ids": [[1], [3]]}, True, False),
        ({"input_ids": [[1, 2], [3, 4]]}, {"input_ids": [[1, 2]] * 3}, False, False),
        ({"pixel_values": PICTURE}, {"pixel_values": PICTURE}, True, True),
        ({"pixel_values": PICTURE}, {"pixel_values": torch.ones(3, 4, 5)}, False, False),
        ({"input_values": [0.5, 1.0]}, {"input_values": [0.5]}, False, False),
        ({"pixel_values": PICTURE, "labels": [1, 2]}, {"pixel_values": PICTURE, "labels": [1]}, True, False),
        ({"input_ids": [1], "text": "a"}, {"input_ids": [1, 2], "text": "b"}, True, False),
    ],
    ids=lambda value: str(value)[:40].replace("\n", ""),
)
def test_rows_go_together_where_padding_changes_neither(first, second, together, unpadded):
    assert goes_with(first, second) is together
    assert goes_with(first, second, unpadded=True) is unpadded


def test_batches_of_a_row_each_are_put_together():
    first = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, -100, 7]]), "n": torch.tensor([1])}
    second = {"input_ids": torch.tensor([[8]]), "labels": torch.tensor([[8]]), "n": torch.tensor([2])}
    whole = joined([first | {"name": "a"}, second | {"name": "b"}], {"input_ids": 9, "labels": -100})
    assert whole["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]] and whole["n"].tolist() == [1, 2]
    assert whole["labels"].tolist() == [[5, -100, 7], [8, -100, -100]] and whole["name"] == "a"
    assert joined([first], {}) == first
    choices = [{"x": torch.ones(1, count, 4)} for count in (2, 3)]
    assert joined(choices, {})["x"].sum(dim=(1, 2)).tolist() == [8, 12]
    for other in ({"labels": torch.tensor([[8]])}, {"input_ids": torch.ones(1, 2, 2)}):
        with pytest.raises(DatasetError, match="The collator makes different entries 'input_ids' of single rows"):
            joined([{"input_ids": torch.tensor([[5, 6, 7]])}, other], {})
