"""The GPU's benchmark, run on the CPU: what is to be run whenever a GPU is at hand must not have rotted by then."""

import inspect
import json
import sys
import time
from pathlib import Path

import pytest
import torch
import typer


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import gpu, gpu_others, gpu_stages
from lorif_hf import InfluenceIndex


CPU = gpu.Setting(torch.device("cpu"), tiny=True, seconds=600.0, venvs=Path("none"))
ON_DEVICE = "device" in inspect.signature(InfluenceIndex.attribute).parameters


@pytest.fixture
def report(tmp_path):
    return gpu.Report(tmp_path / "gpu.json")


def run(tmp_path, **options):
    """`main` on the CPU; what it wrote, and its exit status."""
    given = {"minutes": 8.0, "only": "", "venvs": tmp_path, "install_others": False, "stage": "", "seconds": 0.0}
    status = 0
    try:
        gpu.main(device="cpu", tiny=True, results=tmp_path / "gpu.json", **{**given, **options})
    except typer.Exit as stopped:
        status = stopped.exit_code
    return json.loads((tmp_path / "gpu.json").read_text()), status


@pytest.mark.slow
def test_scores_are_compared_config_by_config(report):
    gpu.correctness(report, CPU)
    checks = {(row["config"], row["what"]): row for row in report.contents["correctness"]}
    on_device = [row for (_, what), row in checks.items() if "scor" in what and "on the device" in what]
    others = [row for row in checks.values() if row not in on_device]
    assert all(row["check"] == "pass" for row in others) and len(others) == 4 * 5
    assert len(on_device) == 4 and all(row["check"] == "pass" for row in on_device if ON_DEVICE)
    # The CPU is compared with itself in other batches, which on some machines round alike.
    assert checks["grad_dot()", "built and queried on the device"]["difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["gpt2", "llama"])
def test_recording_and_queries_are_timed(report, stage):
    gpu.STAGES[stage](report, CPU)
    recorded = report.contents["recording"]
    names = {"gpt2": ["GPT-2 124M, default", "GPT-2 124M, paper()"], "llama": ["Llama 1B, LoRA, default"]}[stage]
    assert [row["model"] for row in recorded] == names
    for row in recorded:
        assert row["ratio_to_plain"] == pytest.approx(row["recording_seconds"] / row["plain_seconds"])
        assert row["build_seconds"] > row["recording_seconds"] > 0
        assert row["plain_peak_gib"] > 0 and row["build_peak_gib"] > 0
        whitened = "default" in row["model"]
        assert (row["passes_before"] > 0) == ("moments_seconds" in row) == whitened
    timed = [(row["model"], row["queries"], row["scored_on"]) for row in report.contents["queries"]]
    places = ("the host", "the device")
    assert timed == [(name, count, place) for name in names for count in (1, 64, 512) for place in places]
    for row in report.contents["queries"]:
        assert row["examples"] == gpu_stages.TINY_EXAMPLES and row["peak_gib"] > 0 if "error" not in row else True
        assert ON_DEVICE or row["scored_on"] == "the device" or "error" not in row
        assert not ON_DEVICE or row["seconds"] > 0


@pytest.mark.slow
def test_an_index_is_made_longer_by_repeating_its_rows(tmp_path):
    model, dataset = gpu_stages.make(32, 2, 64, 16, 2, 4)
    index = InfluenceIndex.build(model, dataset, tmp_path / "index")
    expected = index.scores(model, dataset.select([0, 3]))
    gpu_stages.repeat_rows(tmp_path / "index", 24)
    grown = InfluenceIndex.from_pretrained(tmp_path / "index")
    grown.verify()
    assert len(grown) == 24
    torch.testing.assert_close(grown.scores(model, dataset.select([0, 3])), expected.repeat(1, 3))


@pytest.mark.slow
def test_others_stand_beside_ours_on_the_same_adapters(report, monkeypatch):
    asked = []

    def does_not_install(system, variant, bed, venvs):
        assert all((bed / name).exists() for name in ("base", "adapter", "train.npy", "queries.npy"))
        asked.append(system)
        if system == "bergson":
            raise OSError("No space left on device")
        return {"error": "does not install"}, None

    monkeypatch.setattr(gpu_others, "run_system", does_not_install)
    gpu.others(report, CPU)
    dot, default, *theirs = report.contents["others"]
    assert dot["spearman_with_our_dot"] == pytest.approx(1) and abs(default["spearman_with_our_dot"]) < 0.99
    assert dot["seconds"] > 0 and dot["bytes"] > default["bytes"]
    assert asked == ["dattri-llm", "bergson"] and ["error" in row for row in theirs] == [True, True]


def test_scores_that_are_off_fail(report):
    scores = torch.randn(3, 8)
    off = scores.clone()
    off[1, 2] += 2e-3 * scores.abs().max()
    for got in (off, scores * float("nan"), scores * 1e-4):
        gpu_stages.compare(report, "default", "scores", got, scores)
    gpu_stages.compare(report, "default", "scores", scores.flip(1), scores, coarse=True)
    gpu_stages.compare(report, "default", "scores", scores, scores)
    gpu_stages.compare(report, "default", "scores", off, scores, coarse=True)
    expected = ["FAIL"] * 4 + ["pass"] * 2
    assert [row["check"] for row in json.loads(report.path.read_text())["correctness"]] == expected


def test_what_would_take_too_long_is_left_out(report, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(gpu_stages, "seconds_of", lambda work, device: float(next(clock) + 1))
    setting = gpu.Setting(torch.device("cpu"), tiny=False, seconds=100.0, venvs=Path("none"))
    gpu_stages.query_rows(report, setting, gpu_stages.TINY_TIMED, "a model", range(5), None)
    one, _, many, *_ = report.contents["queries"]
    assert one["repeats"] == 3 and one["first_seconds"] == 1 and one["seconds"] == 3
    assert many["left_out"] == "would take some 192 s" and len(report.contents["queries"]) == 6


def test_a_stage_that_fails_leaves_the_next_its_turn(tmp_path, monkeypatch):
    def run_stage(name, setting, report):
        if name == "gpt2":
            return "failed with status -9: CUDA error: an illegal memory access"
        report.add("correctness", {"check": "pass"} if name == "correctness" else {"check": "FAIL"})
        return "done"

    monkeypatch.setattr(gpu, "run_stage", run_stage)
    written, status = run(tmp_path)
    ended = {name: row["ended"] for name, row in written["stages"].items()}
    assert list(ended) == list(gpu.STAGES) and ended["llama"] == "done" and "illegal" in ended["gpt2"]
    assert status == 1 and len(written["correctness"]) == 3 and written["card"] is None


@pytest.mark.slow
def test_a_stage_has_a_process_of_its_own_and_its_rows_come_back(tmp_path, report):
    assert gpu.run_stage("correctness", CPU, report) == "done"
    assert len(report.contents["correctness"]) == 4 * 6
    ended = gpu.run_stage("no-such-stage", CPU, report)
    assert ended.startswith("failed with status 1: ") and "no-such-stage" in ended


def test_a_stage_is_stopped_when_its_time_is_over(report):
    start = time.monotonic()
    setting = gpu.Setting(torch.device("cpu"), tiny=True, seconds=0.2, venvs=Path("none"))
    assert gpu.run_stage("correctness", setting, report) == "out of time after 0 s"
    assert time.monotonic() - start < 60 and not report.contents["correctness"]


def test_no_stage_begins_when_all_the_time_is_over(tmp_path):
    written, status = run(tmp_path, minutes=0.0)
    assert status == 1 and {row["ended"] for row in written["stages"].values()} == {"not begun: the time is over"}


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = {"tiny": True, "only": "", "results": tmp_path / "gpu.json", "venvs": tmp_path, "install_others": False}
    with pytest.raises(typer.Exit) as stopped:
        gpu.main(device="auto", minutes=8.0, stage="", seconds=0.0, **options)
    assert stopped.value.exit_code == 2 and "No GPU is here" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


def test_what_does_not_install_is_told(tmp_path, monkeypatch, capsys):
    def python_of(system, venvs):
        if system == "bergson":
            raise gpu.InstallError("ERROR: no matching distribution")
        return venvs / system / "bin" / "python"

    monkeypatch.setattr(gpu, "python_of", python_of)
    gpu.install(tmp_path)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("dattri-llm: ") and second == "bergson does not install: ERROR: no matching distribution"
