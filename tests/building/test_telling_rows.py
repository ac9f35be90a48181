"""Rows in which what is recorded wrongly shows."""

import pytest
import torch
from tiny import make_gpt2

from lorif_hf.building.telling_rows import alone_of, rows_of_each_label, telling_rows
from lorif_hf.errors import DatasetError
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.tasks import CausalLM


def rows_of(lengths, **columns):
    dataset = [{"input_ids": list(range(1, length + 1))} for length in lengths]
    for name, values in columns.items():
        for row, value in zip(dataset, values, strict=True):
            row[name] = value
    return TrainingRows(dataset, make_gpt2(), CausalLM())


def test_one_in_between_the_longest_and_the_shortest():
    assert telling_rows(rows_of([5, 9, 3, 6, 7]), 3) == [3, 1, 2]
    assert telling_rows(rows_of([4, 4, 4, 4]), 3) == [2, 3, 0]
    assert telling_rows(rows_of([5, 9]), 3) == [1, 0] and telling_rows(rows_of([7]), 3) == [0]


def test_rows_without_a_target_are_passed_over():
    lengths = [5, 9, 3, 6, 7]
    labels = [[-100] * length if length in (9, 3) else list(range(1, length + 1)) for length in lengths]
    assert telling_rows(rows_of(lengths, labels=labels), 3) == [3, 4, 0]
    with pytest.raises(DatasetError, match="None of the first 2 rows has a target: all their labels are -100"):
        telling_rows(rows_of([2, 2], labels=[[-100, -100]] * 2), 3)
    assert len(telling_rows(rows_of([2] * 80, labels=[[-100, -100]] * 80), 3)) == 3  # later ones may have some


def test_rows_without_lengths_are_taken_as_they_come():
    rows = TrainingRows([{"x": [1.0, 2.0]}] * 5, torch.nn.Linear(2, 1), CausalLM())
    assert telling_rows(rows, 3) == [0, 1, 2]


def test_a_row_of_each_label():
    rows = rows_of([3] * 6, labels=[0, 0, 2, 0, 1, 2])
    rows.collator = lambda features: {
        "input_ids": torch.ones(1, 3, dtype=torch.long),
        "labels": torch.tensor([features[0]["labels"]]),
    }
    rows.task = type("Any", (), {"needs_labels": False, "name": "any"})()
    assert rows_of_each_label(rows) == [0, 2, 4]
    assert rows_of_each_label(rows_of([3, 4])) == []  # each token has its own


def test_a_row_of_a_batch_alone_has_no_padding():
    batch = {
        "input_ids": torch.tensor([[0, 1, 2], [3, 4, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 0]]),
        "label": torch.tensor([5, 6]),
        "name": "x",
    }
    first, second = (alone_of(batch, i, 2) for i in (0, 1))
    assert first["input_ids"].tolist() == [[1, 2]] and second["input_ids"].tolist() == [[3, 4]]
    assert first["label"].tolist() == [5] and second["attention_mask"].tolist() == [[1, 1]] and first["name"] == "x"
    del batch["attention_mask"]
    assert alone_of(batch, 1, 2)["input_ids"].tolist() == [[3, 4, 0]]


def test_of_packed_rows_documents_that_follow_another_are_taken():
    dataset = [{"input_ids": list(range(1, sum(sizes) + 1)), "seq_lengths": sizes} for sizes in ([9], [3, 4], [8, 2])]
    rows = TrainingRows(dataset, make_gpt2(), CausalLM())
    assert rows.count == 5 and set(telling_rows(rows, 3)) == {2, 4}
    single = TrainingRows(dataset[:1], make_gpt2(), CausalLM())
    assert telling_rows(single, 3) == [0]


def test_a_document_alone_is_one_in_its_row_whose_neighbours_have_no_labels():
    dataset = [{"input_ids": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]}]
    rows = TrainingRows(dataset, make_gpt2(), CausalLM())
    alone = alone_of(rows.batch([0, 1]), 1, 2)
    assert alone["labels"].tolist() == [[-100, -100, -100, 4, 5]] and alone.keys() == rows.single(1).keys()
    assert rows.single(1)["labels"].tolist() == alone["labels"].tolist()
