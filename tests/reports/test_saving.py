"""A result in a folder: as it was, or refused."""

import json
import shutil

import pytest
import torch

from lorif_hf import Attribution
from lorif_hf.errors import BuildFolderError, ResultFormatError, StorageError
from lorif_hf.reports import saving
from lorif_hf.reports.distribution import ScoreDistribution
from lorif_hf.reports.provenance import Provenance
from lorif_hf.reports.shading import Shading


def example(row):
    plain = {"row": row, "example_id": None, "text": f"text \u202e \ud800 {row}", "num_tokens": 3, "loss": 0.1}
    return {**plain, "self_influence": 1 / 3, "source": "wiki", "ok": True}


@pytest.fixture
def result():
    """Two queries, with everything that a result may have."""
    spread = ScoreDistribution(9, 0.1, 1 / 3, [0.0, 1.0, 2.0], [4, 5])
    return Attribution(
        torch.tensor([[3.0, 1.0], [2.0, torch.nan]]),
        torch.tensor([[4, 1], [1, -1]]),
        {1: example(1), 4: {**example(4), "pieces": [4, 5]}, 7: example(7)},
        ["first", "second"],
        [2.0, 1 / 3],
        opponent_scores=torch.tensor([[-3.0], [-1.0]]),
        opponent_indices=torch.tensor([[7], [7]]),
        copies={4: [8, 2]},
        layers=["a", "b"],
        layer_scores={(0, 4): [1.0, 2.0], (1, 1): [0.1, 0.2]},
        shading=Shading([["x"], []], {(0, 4): [3.0]}, {4: ["p", "q"]}, {(0, 4): [1.0, 2.0]}),
        distribution=[spread, spread],
        prompts=[3, None],
        provenance=Provenance("m", "me/index", "abc", "index", 9, {"bits": 1}, {"torch": "2"}, "2026-01-01T00:00:00Z"),
    )


def by_token(result):
    spread = result.distribution[0]
    whole = {"layers": None, "layer_scores": None, "shading": None, "opponent_scores": None, "opponent_indices": None}
    scores = torch.tensor([[[3.0], [1.0]], [[2.0], [torch.nan]]])
    rows = torch.tensor([[[4], [1]], [[1], [-1]]])
    fields = {name: getattr(result, name) for name in ("examples", "queries", "losses", "prompts", "provenance")}
    tokens = [["a", "b"], ["c"]]
    return Attribution(scores, rows, **fields, **whole, tokens=tokens, distribution=[[spread] * 2, [spread]])


def same(first, second):
    for name in Attribution.__dataclass_fields__:
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype, name
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other, name


def test_a_result_comes_back_as_it_was(result, tmp_path):
    for saved in (result, by_token(result), result[1:], result[:0], by_token(result)[:0]):
        saved.save(tmp_path / "result")
        same(Attribution.load(tmp_path / "result"), saved)
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [saving.TEXTS, saving.TENSORS]


def test_a_plain_result_has_nothing_that_it_had_not(tmp_path):
    plain = Attribution(torch.zeros(1, 1), torch.zeros(1, 1).long(), {0: example(0)}, ["q"], [1.0])
    plain.save(tmp_path / "a" / "b")
    same(Attribution.load(tmp_path / "a" / "b"), plain)


def test_a_folder_of_something_else_is_left_alone(result, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BuildFolderError, match=r"holds notes.txt: a saved attribution needs a folder of its own"):
        result.save(tmp_path)
    with pytest.raises(BuildFolderError, match="is a file"):
        result.save(tmp_path / "notes.txt")
    with pytest.raises(ResultFormatError, match="holds no attribution: expected a folder with attribution.json"):
        Attribution.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_was_not_saved_whole_is_absent(result, tmp_path, monkeypatch):
    result.save(tmp_path / "result")

    def full(path, text):
        raise StorageError("no room")

    monkeypatch.setattr(saving, "write_text", full)
    with pytest.raises(StorageError):
        result[:1].save(tmp_path / "result")
    with pytest.raises(ResultFormatError, match="holds no attribution"):
        Attribution.load(tmp_path / "result")


def put(*path, value):
    def change(texts):
        for name in path[:-1]:
            texts = texts[name]
        texts[path[-1]] = value

    return change


HOSTILE = {
    "another format": put("format_version", value="9.0"),
    "no format": put("format_version", value=None),
    "queries that are none": put("queries", value=[1, 2]),
    "too few queries": put("queries", value=["first"]),
    "a row without example": put("examples", value=[]),
    "an example that is a list": put("examples", 0, 1, value=[]),
    "an example with a tree": put("examples", 0, 1, "source", value={"a": 1}),
    "a negative copy": put("copies", value=[[4, [-1]]]),
    "too many losses": put("losses", value=[1.0, 2.0, 3.0]),
    "a loss of text": put("losses", value=["a", "b"]),
    "a prompt of text": put("prompts", value=["a", None]),
    "tokens of rows without": put("tokens", value=[["a"], ["b"]]),
    "more layers": put("layers", value=["a", "b", "c"]),
    "a histogram that lies": put("distribution", 0, "count", value=1000),
    "a histogram without edges": put("distribution", 0, "edges", value=[]),
    "an edge that is no number": put("distribution", 0, "mean", value=float("nan")),
    "shares of no token": put("shading", "row_tokens", value=[[4, []]]),
    "a provenance of lists": put("provenance", "model", value=[]),
    "no provenance": put("provenance", value=None),
    "another hash": put("tensors", "sha256", value="0" * 64),
    "another size": put("tensors", "bytes", value=1 << 60),
    "a size that is true": put("tensors", "bytes", value=True),
    "nothing": lambda texts: texts.clear(),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_does_not_fit_together_is_refused(result, tmp_path, change):
    result.save(tmp_path / "result")
    path = tmp_path / "result" / saving.TEXTS
    texts = json.loads(path.read_text())
    change(texts)
    path.write_text(json.dumps(texts))
    with pytest.raises(ResultFormatError, match=r"is not as it was saved: .*Restore it|is of format .* upgrade lorif"):
        Attribution.load(tmp_path / "result")


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff\xfe", b"7", b'{"format_version": "1.0"}'], ids=range(5)
)
def test_a_file_that_is_no_result_is_refused(result, tmp_path, content, monkeypatch):
    result.save(tmp_path / "result")
    (tmp_path / "result" / saving.TEXTS).write_bytes(content)
    with pytest.raises(ResultFormatError):
        Attribution.load(tmp_path / "result")
    monkeypatch.setattr(saving, "_MOST_BYTES", 10)
    (tmp_path / "result" / saving.TEXTS).write_bytes(b" " * 11)
    with pytest.raises(ResultFormatError, match="has 11 bytes; expected at most 10"):
        Attribution.load(tmp_path / "result")


def test_tensors_of_other_shapes_are_refused(result, tmp_path):
    """Also where their hash is right: whoever writes the one writes the other."""
    result.save(tmp_path / "result")
    shutil.copytree(tmp_path / "result", tmp_path / "other")
    result[:1].save(tmp_path / "other")
    texts, tensors = (json.loads((tmp_path / name / saving.TEXTS).read_text()) for name in ("result", "other"))
    (tmp_path / "other" / saving.TEXTS).write_text(json.dumps({**texts, "tensors": tensors["tensors"]}))
    with pytest.raises(ResultFormatError, match=r"indices is of shape \(1, 2\), beside 2 queries of 0 tokens"):
        Attribution.load(tmp_path / "other")
