"""`lorif-hf attribute`: the ranking of the library, for people, programs, tables and pages."""

import csv
import json
import re

import pytest
import torch
from terminal import CONTROLS, EMOJI, ESCAPES, MARKUP, SENTENCES, differences, documented, refused, run
from tiny import make_gpt2

from lorif_hf import Attribution, InfluenceIndex
from lorif_hf.commands.attribute import _layers, attribute, print_answer
from lorif_hf.errors import StorageError


@pytest.fixture
def asked(saved):
    """What the library itself answers."""
    index = InfluenceIndex.from_pretrained(saved / "index")
    return lambda query, **options: index.attribute(make_gpt2(), query, **options)


def by_hand(texts):
    """A result of one query, with an opponent and a row that was folded."""
    examples = {row: {"row": row, "example_id": text, "text": text} for row, text in enumerate(texts)}
    return Attribution(
        torch.tensor([[2.0, 1.0]]),
        torch.tensor([[0, 1]]),
        examples,
        ["the " + texts[0]],
        [float("nan")],
        opponent_scores=torch.tensor([[-3.0]]),
        opponent_indices=torch.tensor([[2]]),
        copies={1: [7, 9]},
    )


def test_attribute_ranks_the_examples_behind_a_text(saved, asked):
    result = run("attribute", saved / "index", saved / "model", SENTENCES[1], "--top-k", 3)
    ranked = re.findall(r"│ +([+-]\S+) +│ (\d) +│ (\w) +│ (\S.*?) +│", result.stdout)
    expected = asked(SENTENCES[1], top_k=3).to_list()
    assert ranked == [(f"{row['score']:+.4g}", str(row["row"]), row["example_id"], row["text"]) for row in expected]
    assert ranked[0][3] == SENTENCES[1] and SENTENCES[1] in result.stdout.splitlines()[0]


def test_many_queries_of_a_file_go_to_a_program_a_table_and_a_page_at_once(saved, asked, tmp_path):
    lines = [{"query": SENTENCES[0]}, {"prompt": "the cat", "completion": " sat on"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = ["--csv", tmp_path / "rows.csv", "--html", tmp_path / "seite ü.html"]
    arguments = ["--queries", tmp_path / "q.jsonl", "--top-k", 2, "--modules", "c_fc", *files]
    said = json.loads(run("attribute", saved / "index", saved / "model", *arguments, "--json").stdout)
    expected = asked([SENTENCES[0], ("the cat", " sat on")], top_k=2, modules=["c_fc"])
    assert differences(said, documented("attribute")) == []
    assert [query["query"] for query in said["queries"]] == list(expected.queries)
    assert [query["loss"] for query in said["queries"]] == pytest.approx(expected.losses)
    scores = [[row["score"] for row in query["rows"]] for query in said["queries"]]
    assert torch.allclose(torch.tensor(scores), expected.scores)
    assert [row["row"] for row in said["queries"][1]["rows"]] == expected.indices[1].tolist()
    assert said["measure"] == "loss" and said["provenance"]["commit"] is None
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as table:
        assert len(list(csv.DictReader(table))) == 4
    page = (tmp_path / "seite ü.html").read_text(encoding="utf-8")
    assert SENTENCES[0] in page and "<script src" not in page


def test_queries_come_from_the_standard_input_and_a_stranger_is_let_in_with_a_warning(saved, tmp_path, asked):
    make_gpt2(seed=5).save_pretrained(tmp_path / "other")
    options = ["--no-strict", "--top-k", 1, "--opponents", 1]
    with pytest.warns(UserWarning, match="weights"):
        result = run("attribute", saved / "index", tmp_path / "other", "-", *options, stdin="the cat\n\na dog\n")
    assert result.exit_code == 0 and [text in result.stdout for text in ("the cat", "a dog")] == [True, True]
    assert len(re.findall(r"│ [+-]\d", result.stdout)) == 4  # a proponent and an opponent each


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, None),
        (["c_fc", "h.0.attn.c_proj"], ["c_fc", "h.0.attn.c_proj"]),
        ([".*mlp.*"], "(?:.*mlp.*)"),
        ([".*mlp.*", "attn.c_proj"], r"(?:.*mlp.*)|(?:.*\.)?attn\.c_proj"),
    ],
)
def test_layers_are_named_by_their_ends_or_by_an_expression(names, expected):
    assert _layers(names) == expected


def test_a_result_is_told_whole(capsys):
    print_answer(by_hand(["cat", "dog", "cow"]), as_json=False)
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    shown = [[cell.strip() for cell in line] for line in lines]
    assert shown == [["+2", "0", "cat", "cat"], ["+1", "1", "dog", "dog (and 2 like it)"], ["-3", "2", "cow", "cow"]]
    print_answer(by_hand(["cat", "dog", "cow"]), as_json=True)
    (query,) = json.loads(capsys.readouterr().out)["queries"]
    assert [row["copies"] for row in query["rows"]] == [[], [7, 9]] and query["opponents"][0]["row"] == 2


def test_hostile_text_is_printed_as_it_is_or_not_at_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "600")
    for as_json in (False, True):
        print_answer(by_hand([ESCAPES, MARKUP, EMOJI]), as_json)
        out = capsys.readouterr().out
        assert not CONTROLS.search(out) and (as_json or (MARKUP in out and EMOJI in out))
    assert out.isascii() and json.loads(out)["queries"][0]["rows"][0]["text"] == ESCAPES
    assert json.loads(out)["queries"][0]["loss"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass a QUERY (or - for the standard input), or a file with --queries: one of them"),
        (["x", "--queries", "q.txt"], "one of them"),
        (["-", "--completion", "x"], "--completion goes with a QUERY"),
        (["--queries", "q.txt", "--completion", "x"], "--completion goes with a QUERY"),
        (["x", "--top-k", "0"], "--top-k"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments, message):
    assert message in refused("attribute", "index", "model", *arguments, code=2)


def test_outputs_are_looked_at_before_anything_is_loaded(tmp_path):
    with pytest.raises(StorageError, match="--html: there is no folder"):
        attribute("no-index", "no-model", "x", html=tmp_path / "no" / "page.html")
