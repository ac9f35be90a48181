"""Queries from files: what each form means, and every slip named by its line."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from lorif_hf.commands.query_files import read_query_file, read_standard_input
from lorif_hf.errors import QueryError


VALUES = ["a text", ["a prompt", " its end"], {"input_ids": [1, 2]}, [{"role": "user", "content": "x"}], ["y", 1]]


def test_every_kind_of_file_gives_the_same_queries(tmp_path):
    expected = ["a text", ("a prompt", " its end"), *VALUES[2:4], ("y", 1)]
    (tmp_path / "q.json").write_text(json.dumps(VALUES))
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, VALUES)) + "\n\n")
    assert read_query_file(tmp_path / "q.json") == read_query_file(tmp_path / "q.jsonl") == expected
    (tmp_path / "one.json").write_text('{"input_ids": [1, 2]}')
    assert read_query_file(tmp_path / "one.json") == [{"input_ids": [1, 2]}]


def test_lines_of_text_end_where_lines_end(tmp_path):
    """Not at the other characters at which `str.splitlines` breaks."""
    (tmp_path / "q.TXT").write_bytes("\ufeffone\r\n \r\ntwo\u2028two \x0c\n".encode())
    assert read_query_file(tmp_path / "q.TXT") == ["one", "two\u2028two \x0c"]
    (tmp_path / "q.jsonl").write_text('{"query": "a\u2028b"}\n{"prompt": "p", "completion": "c"}', encoding="utf-8")
    assert read_query_file(tmp_path / "q.jsonl") == ["a\u2028b", {"prompt": "p", "completion": "c"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b'"x"\n{"query": \n', "line 2 is not JSON"),
        ("q.jsonl", b'{"query": 3}', 'line 1: "query" must be a text, got int'),
        ("q.jsonl", b"\n3\n", "line 2 is 3: expected a text"),
        ("q.json", b'["x", null]', "item 1 is null: expected a text"),
        ("q.json", b"[[[", "is not JSON"),
        ("q.txt", b"ok\n\xff", "is not UTF-8 (byte 3): save it as UTF-8"),
        ("q.txt", b" \n", "holds no query: expected a .txt file"),
        ("q.json", b"[]", "holds no query"),
        ("q.docx", b"x", "cannot be read as queries: expected a .txt file"),
    ],
)
def test_a_slip_is_told_with_the_file_and_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QueryError) as caught:
        read_query_file(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n", "holds no query: expected a text on each line"), (b"\xff", "is not UTF-8")]
)
def test_the_standard_input_holds_a_text_a_line(monkeypatch, content, message):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("é\n\ntwo\n".encode())))
    assert read_standard_input() == ["é", "two"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(QueryError, match=message):
        read_standard_input()
