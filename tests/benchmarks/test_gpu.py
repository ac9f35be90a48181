"""The GPU's benchmark, run on the CPU: what is to be run whenever a GPU is at hand must not have rotted by then."""

import json
import sys
from pathlib import Path

import pytest
import torch
import typer


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import gpu


@pytest.mark.slow
def test_every_part_runs_and_is_in_the_file(tmp_path, capsys):
    gpu.main(device="cpu", minutes=8, tiny=True, results=tmp_path / "gpu.json")
    written = json.loads((tmp_path / "gpu.json").read_text())
    checks = {(row["config"], row["what"]): row for row in written["correctness"]}
    assert all(row["check"] == "pass" for row in checks.values()) and len(checks) == 15
    assert capsys.readouterr().out.count("check pass") == 15
    # The CPU is compared with itself in other batches, which on some machines round alike.
    assert checks["grad_dot()", "built and queried on the device"]["difference"] < 1e-5
    default, paper = written["recording"]
    for row in (default, paper):
        assert row["ratio_to_plain"] == pytest.approx(row["recording_seconds"] / row["plain_seconds"])
        assert row["build_seconds"] > row["recording_seconds"] > 0
    assert default["moments_seconds"] > 0 and default["inverse_roots_seconds"] > 0 and "moments_seconds" not in paper
    timed = [(row["config"], row["queries"], row["repeats"]) for row in written["queries"]]
    assert timed == [(name, count, 5) for name in ("default", "paper()") for count in (1, 64)]
    assert "out_of_time" not in written


def test_scores_that_are_off_fail(tmp_path):
    report, scores = gpu.Report(tmp_path / "gpu.json"), torch.randn(3, 8)
    off = scores.clone()
    off[1, 2] += 2e-3 * scores.abs().max()
    for got in (off, scores * float("nan"), scores * 1e-4):
        gpu.compare(report, "default", "scores", got, scores)
    gpu.compare(report, "default", "scores", scores.flip(1), scores, coarse=True)
    gpu.compare(report, "default", "scores", scores, scores)
    gpu.compare(report, "default", "scores", off, scores, coarse=True)
    expected = ["FAIL"] * 4 + ["pass"] * 2
    assert [row["check"] for row in json.loads((tmp_path / "gpu.json").read_text())["correctness"]] == expected


def test_a_part_that_breaks_fails_alone_and_gives_status_1(tmp_path, monkeypatch):
    def broken(self, *args, **options):
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr(gpu.InfluenceIndex, "scores", broken)
    monkeypatch.setattr(gpu, "timing", lambda *_: None)
    with pytest.raises(typer.Exit) as stopped:
        gpu.main(device="cpu", minutes=8, tiny=True, results=tmp_path / "gpu.json")
    assert stopped.value.exit_code == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["correctness"]
    assert [(row["config"], row["check"]) for row in rows] == [
        (n, "FAIL") for n in ("default", "paper()", "grad_dot()")
    ]
    assert all("same device" in row["error"] for row in rows)


def test_it_stops_when_its_time_is_over(tmp_path):
    with pytest.raises(typer.Exit) as stopped:
        gpu.main(device="cpu", minutes=1e-3, tiny=True, results=tmp_path / "gpu.json")
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["out_of_time"] and not written["correctness"] and stopped.value.exit_code == 1


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit) as stopped:
        gpu.main(device="auto", minutes=8, tiny=True, results=tmp_path / "gpu.json")
    assert stopped.value.exit_code == 2 and "No GPU is here" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()
