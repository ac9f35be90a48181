"""What a person gets: ranked rows, joined to their examples, as tables."""

import pytest
import torch

from lorif_hf import Attribution


HOSTILE = '<script>alert("x")</script> & $x^2$ {{ 7 * 7 }} \'"'


@pytest.fixture
def result():
    examples = {
        row: {
            "row": row,
            "example_id": f"id-{row}",
            "text": HOSTILE if row == 4 else f"text {row}",
            "num_tokens": 3,
            "loss": 1.5,
            "self_influence": 0.25,
        }
        for row in (1, 4, 7)
    }
    scores = torch.tensor([[3.0, 1.0, -2.0], [0.5, 0.25, 0.0]])
    return Attribution(scores, torch.tensor([[4, 1, 7], [1, 7, 4]]), examples, [HOSTILE, "second"], [2.0, 3.0])


def test_one_query_of_several(result):
    assert len(result) == 2
    second = result[1]
    assert len(second) == 1 and second.scores.shape == (1, 3) and second.queries == ["second"]
    assert torch.equal(result[-1].indices, second.indices)
    assert [one.queries[0] for one in result] == [HOSTILE, "second"]
    with pytest.raises(IndexError):
        result[2]
    with pytest.raises(TypeError, match="takes the number of a query or a slice, got 'a'"):
        result["a"]
    assert [part.queries for part in (result[::-1], result[:0], result[-5:1])] == [["second", HOSTILE], [], [HOSTILE]]
    assert result[::-1].indices.tolist() == [[1, 7, 4], [4, 1, 7]] and result[:0].scores.shape == (0, 3)


def test_rows_come_ranked_and_joined(result):
    rows = result.to_list()
    assert [(row["query_id"], row["rank"], row["row"], row["score"]) for row in rows[:4]] == [
        (0, 1, 4, 3.0),
        (0, 2, 1, 1.0),
        (0, 3, 7, -2.0),
        (1, 1, 1, 0.5),
    ]
    assert rows[0]["example_id"] == "id-4" and rows[0]["query"] == HOSTILE
    assert list(rows[0]) == [
        *("query", "rank", "score", "text", "row", "example_id", "num_tokens", "loss", "self_influence", "query_id")
    ]


def test_tables_hold_what_the_list_holds(result):
    assert result.to_pandas().to_dict("records") == result.to_list()
    assert result.to_dataset().to_list() == result.to_list()


@pytest.fixture
def by_token(result):
    """Two queries of two tokens and of one."""
    nan = float("nan")
    scores = torch.tensor([[[3.0, -1.0], [0.5, 0.25]], [[2.0, 1.0], [nan, nan]]])
    rows = torch.tensor([[[4, 1], [1, 7]], [[7, 4], [-1, -1]]])
    tokens = [[" Par", HOSTILE], [" is"]]
    return Attribution(scores, rows, result.examples, result.queries, [2.0, 3.0], measure="log_prob", tokens=tokens)


def test_rows_of_tokens_name_their_token(by_token):
    rows = by_token.to_list()
    assert [(r["query_id"], r["token"], r["token_text"], r["rank"], r["row"], r["score"]) for r in rows] == [
        (0, 0, " Par", 1, 4, 3.0),
        (0, 0, " Par", 2, 1, -1.0),
        (0, 1, HOSTILE, 1, 1, 0.5),
        (0, 1, HOSTILE, 2, 7, 0.25),
        (1, 0, " is", 1, 7, 2.0),
        (1, 0, " is", 2, 4, 1.0),
    ]
    assert by_token.to_pandas().to_dict("records") == rows == by_token.to_dataset().to_list()
    assert [row["token_text"] for row in by_token[1].to_list()] == [" is", " is"]
    assert by_token[0].tokens == [[" Par", HOSTILE]] and by_token[0].measure == "log_prob"
