"""Files of queries, good and bad."""

import json

import pytest

from lorif_hf.app import query_files
from lorif_hf.app.query_files import FileQuery, read_query_file
from lorif_hf.errors import QueryError


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", "\ufeffone\r\n\r\n two \n", [FileQuery("one"), FileQuery(" two ")]),
        ("a.TXT", "größe", [FileQuery("größe")]),
        (
            "a.jsonl",
            '"p"\n\n{"prompt": "p\u2028q", "completion": " c", "id": 3}\n{"text": "t"}\n{"prompt": "p"}',
            [FileQuery("p"), FileQuery("p\u2028q", " c"), FileQuery("t", whole=True), FileQuery("p")],
        ),
        ("a.jsonl", '{"text": "t", "label": "good"}', [FileQuery("t", "good")]),
        (
            "a.csv",
            'id,prompt,completion\n1,"two\nlines", c\n2,p,\n',
            [FileQuery("two\nlines", " c"), FileQuery("p")],
        ),
    ],
    ids=["text", "upper case", "objects", "label", "table"],
)
def test_what_a_file_asks(tmp_path, name, content, expected):
    assert read_query_file(written(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.pdf", "x", r"a\.pdf is no file of queries: expected one of \.txt, \.jsonl, \.csv"),
        ("a.txt", " \n\n", r"a\.txt holds no query"),
        ("a.txt", b"gr\xf6\xdfe", r"a\.txt is no UTF-8 text \(byte 2\): save it as UTF-8"),
        ("a.jsonl", '"p"\n{"prompt": ', r"Line 2 of a\.jsonl is no JSON"),
        ("a.jsonl", "[" * 100_000, r"Line 1 of a\.jsonl is no JSON"),
        ("a.jsonl", "3", r"Line 1 of a\.jsonl is a int: expected a text, or an object with a column .prompt."),
        ("a.jsonl", '{"question": "p"}', r'Line 1 of a\.jsonl holds "question": expected a column "prompt"'),
        ("a.jsonl", '{"prompt": 3}', r"Line 1 of a\.jsonl holds something else than texts"),
        ("a.csv", "question\np\n", r'Line 2 of a\.csv holds "question": expected a column "prompt"'),
        ("a.csv", 'prompt\n"p"q\n', r"Line 2 of a\.csv is no CSV"),
        ("a.csv", "prompt\n" + "x" * 200_000, r"Line 2 of a\.csv is no CSV"),
    ],
    ids=["kind", "empty", "bytes", "json", "deep", "number", "key", "type", "column", "quotes", "field"],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, message):
    with pytest.raises(QueryError, match=message):
        read_query_file(written(tmp_path, name, content))


def test_a_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(query_files, "MOST_BYTES", 10)
    with pytest.raises(QueryError, match="has 11 bytes, at most 10 are read here: split it"):
        read_query_file(written(tmp_path, "a.txt", "x" * 11))
    with pytest.raises(QueryError, match=r"3 queries, at most 2 are answered at once"):
        monkeypatch.setattr(query_files, "MOST_QUERIES", 2)
        read_query_file(written(tmp_path, "a.jsonl", json.dumps("p") + '\n""\n1'.replace("1", '"q"')))
