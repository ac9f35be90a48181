"""The bench of wide layers, at a tiny size: every part runs and is in the file."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import wide


def in_this_process(part, tiny, block, folder, repeats):
    made = wide.PARTS[part](*wide.model_and_rows(tiny, block), folder, repeats)
    return json.loads(json.dumps(made))


def test_every_part_runs_and_is_in_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wide, "run_part", in_this_process)
    wide.main(repeats=1, block=True, only="", tiny=True, results=tmp_path / "wide.json", part="", folder=tmp_path)
    written = json.loads((tmp_path / "wide.json").read_text())
    assert list(written["models"]) == ["GPT-2 124M", "one 7B block"]
    for parts in written["models"].values():
        assert "error" not in str(parts) and set(parts) == set(wide.PARTS)
        assert parts["memory"]["peak_gib"] >= parts["memory"]["model_gib"] > 0
        build, queries = parts["build"], parts["queries"]["queries"]
        assert build["to_plain"] == pytest.approx(build["seconds"] / build["plain"]["seconds"])
        assert list(queries) == ["the first query", "1 query", "16 queries"]
        phases = parts["phases"]["phases"]
        whole = phases.pop("all")["seconds"]
        assert sum(row["seconds"] for row in phases.values()) == pytest.approx(whole)
    shown = capsys.readouterr().out
    assert "one 7B block: the build's process peaks at" in shown and "failed" not in shown


@pytest.mark.slow
def test_a_part_has_a_process_of_its_own(tmp_path):
    made = wide.run_part("memory", True, False, tmp_path, 1)
    assert made["peak_gib"] >= made["model_gib"] > 0 and (tmp_path / "index" / "influence_config.json").exists()
    assert "no-such-part" in wide.run_part("no-such-part", True, False, tmp_path, 1)["error"]


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path, monkeypatch, capsys):
    def of_part(part, *_):
        return {"error": "killed: out of memory"} if part == "memory" else {"peak_gib": 1.0}

    monkeypatch.setattr(wide, "run_part", of_part)
    wide.main(repeats=1, block=False, only="", tiny=True, results=tmp_path / "wide.json", part="", folder=tmp_path)
    parts = json.loads((tmp_path / "wide.json").read_text())["models"]["GPT-2 124M"]
    assert list(parts) == ["memory", "queries", "build", "phases"]
    assert "GPT-2 124M, memory: failed\nkilled: out of memory" in capsys.readouterr().out
