"""Rows in which what is recorded wrongly shows."""

import pytest
import torch
from tiny import make_gpt2

from lorif_hf.building.telling_rows import rows_of_each_label, telling_rows
from lorif_hf.errors import DatasetError
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.tasks import CausalLM, Custom, QuestionAnswering


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
    rows.task = Custom(lambda model, batch: torch.zeros(1))
    assert rows_of_each_label(rows) == [0, 2, 4]
    assert rows_of_each_label(rows_of([3, 4])) == []  # each token has its own


def test_of_packed_rows_documents_that_follow_another_are_taken():
    dataset = [{"input_ids": list(range(1, sum(sizes) + 1)), "seq_lengths": sizes} for sizes in ([9], [3, 4], [8, 2])]
    rows = TrainingRows(dataset, make_gpt2(), CausalLM())
    assert rows.count == 5 and set(telling_rows(rows, 3)) == {2, 4}
    single = TrainingRows(dataset[:1], make_gpt2(), CausalLM())
    assert telling_rows(single, 3) == [0]


def test_a_document_alone_is_one_in_its_row_whose_neighbours_have_no_labels():
    dataset = [{"input_ids": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]}]
    alone = TrainingRows(dataset, make_gpt2(), CausalLM()).single(1)
    assert alone["labels"].tolist() == [[-100, -100, -100, 4, 5]] and "segments" not in alone


def test_rows_of_the_most_common_length_where_padding_counts():
    rows = rows_of([5, 9, 3, 9, 7, 9, 3])
    rows.task = QuestionAnswering()
    chosen = telling_rows(rows, 3)
    assert sorted(chosen) == [1, 3, 5]
