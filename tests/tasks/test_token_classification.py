"""Classifiers of tokens: the loss by the model's own, the index by autograd."""

import pytest
import torch
from every_task import assert_recorded, index_of, token_sum
from kinds import bert, rows_of
from transformers import BertForTokenClassification
from truth import relative_error

from lorif_hf.errors import DatasetError, QueryError
from lorif_hf.tasks import task_of


def tagged():
    rows = rows_of()
    for row in rows:
        row["labels"] = [-100, *(token % 3 for token in row["input_ids"][1:])]
    return rows


def tagger():
    return bert(BertForTokenClassification, num_labels=3)


def test_an_index_of_tagged_texts(tmp_path):
    model, rows = tagger(), tagged()
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "token-classification", token_sum)
    assert relative_error(index, model, rows, token_sum) < 1e-5
    assert [example["num_tokens"] for example in index.examples([0, 1])] == [6, 3]


def test_without_labels_each_token_is_measured_at_its_prediction():
    model, task = tagger().eval(), task_of(tagger())
    batch = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    predicted = model(**batch).logits.argmax(dim=-1)
    predicted[1, 2] = -100
    assert torch.equal(task.losses(model, batch), task.losses(model, batch | {"labels": predicted}))
    assert task.targets(batch).tolist() == [3, 2] == task.targets(batch | {"labels": predicted}).tolist()


@pytest.mark.parametrize(
    "labels, message",
    [
        ([-100, 1, 3, 0, 1, 1], r"cannot take row 0 \(3 in column 'labels'\): its classes are 0 to 2"),
        ([0, 1], "Row 0 has 6 tokens in column 'input_ids' and 2 values in column 'labels'"),
        ([0.0] * 6, "column 'labels' holds float32 numbers, expected whole ones"),
    ],
)
def test_labels_that_fit_no_token(tmp_path, labels, message):
    rows = tagged()
    rows[0]["labels"] = labels
    with pytest.raises(DatasetError, match=message):
        index_of(tagger(), rows, tmp_path)


def test_queries_that_mean_nothing():
    task = task_of(tagger())
    with pytest.raises(QueryError, match="Query 1 pairs a text with 'PERSON', and a token classifier has a label"):
        task.query_pair(None, "Anna lives", "PERSON", 1)
    with pytest.raises(QueryError, match="Query 1 has 3 tokens, but 2 labels: expected as many"):
        task.check_query({"input_ids": [1, 2, 3], "labels": [0, 1]}, 1)
    with pytest.raises(QueryError, match="Query 1 has nothing to measure: all its labels are -100"):
        task.check_query({"input_ids": [1, 2], "labels": [-100, -100]}, 1)
    task.check_query({"input_ids": [1, 2]}, 1)
