"""Benchmarks that README and docs tell to run, run with sizes of seconds: that they run, not what they measure."""

import importlib
import json
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import (
    check,
    curvature,
    direct,
    index_size,
    lora,
    lora_others,
    preferences,
    quality,
    query,
    recording,
    references,
    report,
    wikitext,
)
from benchmarks.end_to_end import prepare
from benchmarks.end_to_end.environments import InstallError


ROOT = Path(__file__).parents[2]
end_to_end = importlib.import_module("benchmarks.end_to_end.__main__")
TINY_MODELS = {"a tiny GPT-2": (16, 1, 32, 8, 2, 2)}
RETRAINED = {"num_subsets": 2, "seeds": 2}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Python's own documentation in place of WikiText-2."""
    folder, whole = tmp_path_factory.mktemp("texts"), " ".join(topics.values())
    for name, part in (("valid.txt", whole[:12_000]), ("test.txt", whole[12_000:30_000])):
        (folder / name).write_text(part)
    return folder


@pytest.fixture(scope="module")
def beds(texts, tmp_path_factory):
    """Where `quality` keeps its beds, each made at its first use; those of later tests go on with them."""
    with pytest.MonkeyPatch.context() as patch:
        for module, sizes in (
            (wikitext, {"TRAIN": 8, "QUERIES": 3}),
            (lora, {"TRAIN": 8, "QUERIES": 3, "PRETRAINING_EPOCHS": 1, "EPOCHS": 1}),
        ):
            for name, value in sizes.items():
                patch.setattr(module, name, value)
        small = partial(wikitext.TestBed, data=texts)
        for module in (wikitext, direct, prepare):
            patch.setattr(module, "TestBed", small)
        adapters = partial(lora.LoraBed, data=texts)
        for module in (lora, lora_others, preferences):
            patch.setattr(module, "LoraBed", adapters)
        for module in (quality, direct):
            patch.setattr(module, "retrain", partial(module.retrain, **RETRAINED))
        yield tmp_path_factory.mktemp("beds")


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Where the figures go: not among those that were measured."""
    for module in (check, direct, lora_others, preferences, quality, recording):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def written(path):
    return json.loads(path.read_text())


def test_index_size(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    index_size.main()
    assert "27,936" in capsys.readouterr().out, "README and docs/choosing.md say 27,936 bytes an example"


def test_report(tmp_path, monkeypatch):
    """What it writes is what lies in the repository."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(report, "HERE", tmp_path / "benchmarks")
    report.main()
    for name in ("README.md", "benchmarks/RESULTS.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"run `python -m benchmarks.report`: {name}"
    assert (tmp_path / "benchmarks" / "wikitext.png").stat().st_size > 0


def test_query(tmp_path, monkeypatch):
    for name, value in {"SIZES": (40,), "QUERIES": (1, 2), "PUBLISHED_ROWS": 8, "DENSE_ROWS": 8, "RANK": 16}.items():
        monkeypatch.setattr(query, name, value)
    monkeypatch.setattr(query, "median", partial(query.median, repeats=1))
    in_process = subprocess.CompletedProcess([], 0, json.dumps({"RssAnon": 1, "RssFile": 1}))
    monkeypatch.setattr(query.subprocess, "run", lambda *arguments, **options: in_process)
    query.main(40, tmp_path, tmp_path / "query.json")
    rows = written(tmp_path / "query.json")["rows"]
    assert {(row["examples"], row["queries"]) for row in rows[:2]} == {(40, 1), (40, 2)}


def test_curvature(tmp_path, monkeypatch):
    monkeypatch.setattr(curvature, "CASES", {"gram": (80, 6, 6, 8)})
    curvature.main("", 1, tmp_path / "curvature.json")
    rows = written(tmp_path / "curvature.json")["cases"]["gram"]["rows"]
    assert list(rows) == ["chosen: gram", curvature.PUBLISHED] and all(row["energy"] <= 1 for row in rows.values())


@pytest.mark.parametrize("module", [recording, check], ids=["recording", "check"])
def test_recording(module, results, monkeypatch):
    monkeypatch.setattr(module, "MODELS", TINY_MODELS)
    module.main(repeats=1)
    name = module.__name__.rpartition(".")[2]
    assert {row["model"] for row in written(results / f"{name}.json")["rows"]} == set(TINY_MODELS)


@pytest.mark.slow
def test_quality(beds, results):
    """And those that go on with its models and its bank."""
    quality.main("wikitext", beds, 1, 2, "default", False)
    assert -1 <= written(results / "wikitext.json")["rows"]["default"]["lds"] <= 1
    direct.main(beds / "wikitext")
    assert written(results / "direct.json")["rows"]["LoGRA, f = 4"]["spearman"] > 0.95


def test_references(beds, monkeypatch, capsys):
    if not references.has_kronfluence():
        monkeypatch.setattr(references, "kronfluence_scores", lambda *arguments, **run: torch.eye(3, 8))
    references.main(beds / "wikitext", 8, 3, 0.1, 128)
    assert "ours with kfac, the same damping" in capsys.readouterr().out


@pytest.mark.slow
def test_lora_others(beds, results, monkeypatch):
    """Where none of them installs: what is said of them."""

    def python_of(system, venvs):
        raise InstallError("no index")

    monkeypatch.setattr(lora_others, "python_of", python_of)
    quality.main("lora", beds, 1, 2, "default", False)
    lora_others.main(beds, beds / "venvs", "")
    rows = written(results / "lora.json")["rows"]
    assert rows["bergson, dot"]["error"] == "does not install: no index" and -1 <= rows["default"]["lds"] <= 1


@pytest.mark.slow
def test_preferences(beds, results, monkeypatch):
    for name, value in {"PAIRS": 10, "QUERIES": 2, "EPOCHS": 1, "BATCH": 5}.items():
        monkeypatch.setattr(preferences, name, value)
    preferences.main(beds, 1, 0)
    found = written(results / "preferences.json")
    assert found["flipped"] == 1 and found["trainings"]["0"]["rows"]["default"]["coverage"] == 1


def test_end_to_end(beds, tmp_path, monkeypatch):
    """Its processes, one after the other in this one."""

    def in_process(command, **options):
        monkeypatch.setattr(sys, "argv", [str(part) for part in command[2:]])
        runpy.run_module(command[2], run_name="__main__")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(end_to_end.subprocess, "run", in_process)
    monkeypatch.setattr(prepare, "STEPS", 2)
    out = tmp_path / "end_to_end.json"
    end_to_end.main(beds / "e", 8, 2, 32, 1, 4, 4, 1, "plain,ours-default-f", out, False)
    rows = written(out)["rows"]
    assert list(rows) == ["plain backward", "default at f = 4"] and rows["default at f = 4"]["bytes"] > 0
