"""A result as rows: in a terminal of any width, in a spreadsheet, as JSON."""

import csv
import json
import unicodedata
from dataclasses import replace

import pytest
import torch

from lorif_hf import Attribution
from lorif_hf.errors import QueryError
from lorif_hf.reports.distribution import ScoreDistribution
from lorif_hf.reports.shading import Shading
from lorif_hf.reports.tables import as_text, cut_to_width


ACTING = "=1+1 \x1b[31mred\x07 \u202eevil\u202c zero\u200bwidth\r\n\x00 end"
TEXTS = {1: "plain", 4: ACTING, 7: "法国的首都是巴黎" * 20, 9: None}


@pytest.fixture
def result():
    examples = {
        row: {"row": row, "example_id": f"id-{row}", "text": text, "num_tokens": 3, "loss": 1.5, "source": "a"}
        for row, text in TEXTS.items()
    }
    examples[1]["source"] = None
    return Attribution(
        torch.tensor([[3.0, 1.0, 0.5], [0.5, 0.25, 0.0]]),
        torch.tensor([[4, 1, 7], [1, 7, 4]]),
        examples,
        [ACTING, "second"],
        [2.0, 3.0],
        opponent_scores=torch.tensor([[-3.0], [-1.0]]),
        opponent_indices=torch.tensor([[9], [9]]),
        copies={4: [8, 2]},
        layers=["a", "b"],
        layer_scores={(0, 4): [1.0, 2.0]},
        shading=Shading([["x"], []], {(0, 4): [3.0]}, {4: ["p", "q"]}, {(0, 4): [1.0, 2.0]}),
        distribution=[ScoreDistribution(50, 0.0, 1.0, [-4.0, 4.0], [50])] * 2,
        prompts=[2, None],
    )


def width_of(line):
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in line)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_acts_on_it(result, width):
    text = as_text(result, width)
    assert all(width_of(line) <= width for line in text.splitlines())
    assert all(c.isprintable() for c in text.replace("\n", "")) and "red" in text
    assert "(+2 like it)" in text and text.count("id-9") == 2
    assert text.splitlines()[0].startswith("Attribution of 2 queries (nats per unit")


def test_a_terminal_that_is_too_narrow_gets_some_of_the_text(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert any("plain" in line for line in repr(result).splitlines())
    assert repr(result[:0]) == "Attribution of 0 qu…"


def test_many_queries_and_rows_are_counted(result):
    rows = {row: {"row": row, "text": "t"} for row in range(30)}
    many = Attribution(torch.zeros(12, 30), torch.arange(30).expand(12, 30), rows, ["q"] * 12, [0.0] * 12)
    text = repr(many)
    assert "... and 2 more queries: to_pandas() has all." in text and text.count("... and 20 more of the best") == 10


@pytest.mark.parametrize(
    "text, width, expected",
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("法国的", 5, "法国…"),
        ("法国", 4, "法国"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
        (None, 3, ""),
    ],
)
def test_texts_are_cut_to_columns_of_a_terminal(text, width, expected):
    assert cut_to_width(text, width) == expected


def test_a_spreadsheet_takes_no_text_for_a_formula(result, tmp_path):
    result.to_csv(tmp_path / "rows.csv")
    content = (tmp_path / "rows.csv").read_bytes()
    assert not set(b"\x1b\x07\x00") & set(content)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and list(rows[0])[:5] == ["query", "rank", "score", "z", "text"]
    assert rows[0]["text"].startswith("'=1+1  [31mred") and "\u202e" not in rows[0]["text"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "50"] * 2 and float(rows[3]["score"]) == -3
    assert rows[0]["copies"] == "8 2" and rows[1]["source"] == "" and rows[3]["text"] == ""
    result[:0].to_csv(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().strip() == "query,rank,score,text,row,query_id"


def test_json_holds_all_of_it(result, tmp_path):
    result.examples[7]["loss"] = float("nan")
    result.to_json(tmp_path / "result.json")
    content = (tmp_path / "result.json").read_text(encoding="ascii")
    held = json.loads(content)
    first = held["queries"][0]
    assert (first["query"], first["prompt_characters"], first["loss"]) == (ACTING, 2, 2.0)
    assert first["rows"][0]["text"] == ACTING and first["rows"][0]["layer_scores"] == [1.0, 2.0]
    assert first["rows"][0]["tokens"] == [["p", 1.0], ["q", 2.0]] and first["rows"][0]["query_tokens"] == [["x", 3.0]]
    assert first["rows"][2]["loss"] is None and first["opponents"][0]["rank"] == 50
    assert first["distribution"]["counts"] == [50] and held["layers"] == ["a", "b"]
    result.tokens = [["a"], ["b"]]


def test_tokens_are_rankings_of_their_own(result, tmp_path):
    by_token = replace(
        result,
        scores=result.scores[:1].unsqueeze(0),
        indices=result.indices[:1].unsqueeze(0),
        queries=["asked"],
        losses=[2.0],
        tokens=[["\x1b tok"]],
        opponent_scores=None,
        opponent_indices=None,
        distribution=[[result.distribution[0]]],
        prompts=None,
    )
    by_token.to_json(tmp_path / "result.json")
    (of_token,) = json.loads((tmp_path / "result.json").read_text())["queries"][0]["tokens"]
    assert of_token["token"] == "\x1b tok" and [row["row"] for row in of_token["rows"]] == [4, 1, 7]
    assert r"  0: '\x1b tok'" in repr(by_token) and ", 1 tokens" in repr(by_token)


def test_where_rows_stand_among_all(result):
    first, *_, last = result.standing
    assert first == {"query_id": 0, "row": 4, "score": 3.0, "rank": 1, "z": 3.0, "count": 50}
    assert (last["query_id"], last["rank"], last["z"]) == (1, 50, -1.0)
    result.distribution = None
    assert result.standing == []


def test_groups_of_the_rows_that_are_shown(result):
    influence = result.by("source")
    assert influence.groups == ["a", None] and influence.sums.tolist() == [[0.5, 1.0], [-0.75, 0.5]]
    with pytest.raises(QueryError, match=r"no column 'colour': there are 'row', 'example_id'"):
        result.by("colour")
    assert result[:0].by("source").sums.shape == (0, 0)
