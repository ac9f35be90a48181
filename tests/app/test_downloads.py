"""Files of a result."""

import csv
import json
from pathlib import Path

import pytest

from lorif_hf.app.downloads import remove, write_downloads
from lorif_hf.app.questions import Choices


def test_a_result_is_written_as_three_files_and_removed(questions):
    result = questions.attribute("5 9 14", " 20 11", Choices(top_k=3, opponents=2))
    page, table, data = map(Path, write_downloads(result))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    with table.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    assert json.loads(data.read_text(encoding="utf-8"))
    remove([str(page), str(table), str(data)])
    assert not page.parent.exists()
    remove(None)


def test_nothing_is_left_where_writing_fails(questions, tmp_path, monkeypatch):
    result = questions.attribute("5 9 14", " 20 11", Choices(top_k=3, opponents=0))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(path):
        raise OSError("disk full")

    result.to_csv = full
    with pytest.raises(OSError, match="disk full"):
        write_downloads(result)
    assert list(tmp_path.iterdir()) == []
