"""Multiple choice: an index against autograd, row by row."""

import pytest
import torch
from every_task import assert_recorded, index_of, row_loss
from kinds import bert, rows_of
from transformers import BertForMultipleChoice, DataCollatorForMultipleChoice
from truth import relative_error

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import QueryError
from lorif_hf.tasks import task_of


def questions(count=6):
    first, second, third = (rows_of((5,) * count, seed=seed) for seed in range(3))
    return [
        {"input_ids": [row["input_ids"] for row in choices], "labels": i % 3}
        for i, choices in enumerate(zip(first, second, third, strict=True))
    ]


def test_an_index_of_choices(tmp_path):
    model, rows = bert(BertForMultipleChoice), questions()
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "multiple-choice")
    assert relative_error(index, model, rows, row_loss) < 1e-5
    assert index.examples([0])[0]["num_tokens"] == 15


def test_choices_of_different_lengths_through_the_collator(tmp_path, tokenizer):
    model, rows = bert(BertForMultipleChoice), questions()
    for i, row in enumerate(rows):
        row["input_ids"] = [ids[: 2 + (i + n) % 4] for n, ids in enumerate(row["input_ids"])]
        row["attention_mask"] = [[1] * len(ids) for ids in row["input_ids"]]
    collate = DataCollatorForMultipleChoice(tokenizer)
    index = index_of(model, rows, tmp_path, data_collator=collate)
    assert_recorded(index, model, rows, "multiple-choice", lambda model, row: model(**collate([dict(row)])).loss)


def test_every_kind_of_layer_sees_the_choices_of_an_example_together(tmp_path):
    model, rows = bert(BertForMultipleChoice), questions()
    config = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", target_modules="all")
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config, batch_size=4)
    assert index.coverage.share == 1
    assert_recorded(index, model, rows, "multiple-choice")


def test_without_a_label_the_prediction_is_measured():
    model = bert(BertForMultipleChoice).eval()
    task, ids = task_of(model), torch.tensor([questions(1)[0]["input_ids"]])
    predicted = model(input_ids=ids).logits.argmax(-1)
    assert torch.equal(
        task.losses(model, {"input_ids": ids}), task.losses(model, {"input_ids": ids, "labels": predicted})
    )
    assert task.targets({"input_ids": ids}).tolist() == [1]
    assert task.targets({"input_ids": ids, "labels": torch.tensor([-100])}).tolist() == [0]


def test_a_pair_of_texts_is_no_query():
    with pytest.raises(QueryError, match=r"Query 2 is a pair of texts, .* input_ids of shape \(choices, tokens\)"):
        task_of(bert(BertForMultipleChoice)).query_pair(None, "a", "b", 2)
