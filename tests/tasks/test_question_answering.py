"""Answers in texts: the loss by the model's own, the index by autograd."""

import pytest
import torch
from every_task import assert_recorded, bart, index_of, row_loss
from kinds import bert, rows_of
from transformers import BartForQuestionAnswering, BertForQuestionAnswering
from truth import relative_error

from lorif_hf.errors import DatasetError, QueryError
from lorif_hf.tasks import task_of


def answered(lengths):
    rows = rows_of(lengths)
    for i, row in enumerate(rows):
        row |= {"start_positions": i % 2, "end_positions": len(row["input_ids"]) - 1}
    return rows


@pytest.mark.parametrize("make", [lambda: bert(BertForQuestionAnswering), lambda: bart(BartForQuestionAnswering)])
@pytest.mark.parametrize("lengths", [(5,) * 6, (6, 4, 6, 4, 6, 3)], ids=["alike", "ragged"])
def test_an_index_of_answers(tmp_path, make, lengths):
    """Padding counts in the softmax over a row's tokens, so rows of one length alone go together, and queries too."""
    model, rows = make(), answered(lengths)
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "question-answering")
    assert relative_error(index, model, rows, row_loss) < 1e-5


def test_a_position_beyond_the_text_counts_for_nothing():
    model = bert(BertForQuestionAnswering).eval()
    task, ids = task_of(model), torch.tensor([[3, 4, 5], [6, 7, 8], [3, 4, 5]])
    batch = {"input_ids": ids, "start_positions": torch.tensor([1, 3, 5]), "end_positions": torch.tensor([9, 2, 4])}
    losses = task.losses(model, batch)
    logits = model(input_ids=ids)
    start, end = logits.start_logits.log_softmax(-1), logits.end_logits.log_softmax(-1)
    torch.testing.assert_close(losses, torch.stack([-start[0, 1] / 2, -end[1, 2] / 2, torch.zeros(())]))
    assert task.targets(batch).tolist() == [1, 1, 0]


def test_without_positions_the_prediction_is_measured():
    model = bert(BertForQuestionAnswering).eval()
    task, ids = task_of(model), torch.tensor([[3, 4, 5]])
    outputs = model(input_ids=ids)
    where = {"start_positions": outputs.start_logits.argmax(-1), "end_positions": outputs.end_logits.argmax(-1)}
    assert torch.equal(task.losses(model, {"input_ids": ids}), task.losses(model, {"input_ids": ids, **where}))
    assert task.targets({"input_ids": ids}).tolist() == [1]


def test_rows_without_positions_and_queries_with_half_of_them(tmp_path):
    with pytest.raises(
        DatasetError, match="The batches have no start_positions and no end_positions, which objective"
    ):
        index_of(bert(BertForQuestionAnswering), rows_of(), tmp_path)
    task = task_of(bert(BertForQuestionAnswering))
    with pytest.raises(QueryError, match="Query 0 has start_positions alone: pass both positions, or neither"):
        task.check_query({"input_ids": [1, 2], "start_positions": 0}, 0)
    with pytest.raises(QueryError, match=r"pairs a text with 3: expected a \(question, context\) pair"):
        task.query_pair(None, "Where?", 3, 0)


def test_a_question_and_its_context_are_a_query(tmp_path, tokenizer):
    model, rows = bert(BertForQuestionAnswering), answered((5,) * 4)
    model.resize_token_embeddings(len(tokenizer))
    index = index_of(model, rows, tmp_path, processing_class=tokenizer)
    tokens = tokenizer("Where?", text_pair="In Paris")["input_ids"]
    asked = [("Where?", "In Paris"), {"question": "Where?", "context": "In Paris"}, {"input_ids": tokens}]
    scores = index.scores(model, asked)
    torch.testing.assert_close(scores[0], scores[2])
    torch.testing.assert_close(scores[1], scores[2])
