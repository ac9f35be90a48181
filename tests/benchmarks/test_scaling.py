"""The model of large indices: what it counts is what is written, and it predicts by its constants."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import scaling
from lorif_hf import InfluenceConfig
from lorif_hf.storage.layout import ModuleEntry


ENTRIES = [
    ModuleEntry("a", "linear", 24, 16, 24, 16, ""),
    ModuleEntry("b", "linear", 16, 40, 16, 40, ""),
]


def test_bytes_are_those_on_disk_but_for_the_files_headers(tmp_path):
    taken = scaling.measured_rows(tmp_path, ENTRIES, 3000)
    counted = 3000 * scaling.row_bytes(ENTRIES, scaling.SIMULATED)
    assert counted == 3000 * (24 // 8 + 16 // 8 + 16 // 8 + 40 // 8 + 2 * 2)
    assert counted < taken["bytes"] < counted + 5000
    assert min(taken.values()) > 0 and set(taken) == {"write", "bytes", "read", "score, Q = 1", "score, Q = 16"}


def test_constants_predict_what_they_were_measured_on():
    taken = {"write": 2.0, "bytes": 16_000.0, "read": 0.5, "score, Q = 1": 3.0, "score, Q = 16": 20.0}
    constants = scaling.constants_of(taken, ENTRIES, 1000)
    assert scaling.predicted_rows(constants, ENTRIES, scaling.SIMULATED, 1000) == pytest.approx(taken)
    predicted = scaling.predicted_rows(constants, ENTRIES, InfluenceConfig(factor_rank=3), 2000)
    expected = {name: 6 * value for name, value in taken.items()}  # three pairs, twice the rows
    assert predicted == pytest.approx(expected)


def test_a_query_of_few_tokens_costs_as_little_as_it_is_thin():
    whole = scaling.operations(ENTRIES, scaling.SIMULATED, queries=2)
    assert whole == 2 * 2 * (24 * 16 + 16 * 40)
    assert scaling.operations(ENTRIES, scaling.SIMULATED, queries=2, tokens=4) == 2 * 2 * 4 * (24 + 16 + 16 + 40)


@pytest.mark.parametrize("name, layers", [("GPT-2 124M", 48), ("Llama 7B", 224)])
def test_shapes_are_those_of_real_models(name, layers):
    entries = scaling.entries_of(scaling.SHAPES[name](), InfluenceConfig())
    assert len(entries) == layers
    inputs = {(entry.in_features, entry.out_features) for entry in entries}
    assert (4096, 11_008) in inputs if "7B" in name else (768, 3072) in inputs


@pytest.mark.slow
def test_it_runs_and_its_tables_go_into_the_docs(tmp_path, monkeypatch, capsys):
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n\n{scaling.BEGIN}\nold\n{scaling.END}\n\nafter\n")
    monkeypatch.setattr(scaling, "DOCS", page)
    monkeypatch.setattr(scaling, "ROWS", (40, 80))
    monkeypatch.setattr(scaling, "SHARD", 20)
    monkeypatch.setattr(scaling, "SHAPES", {"GPT-2 124M": scaling.gpt2})
    options = {"max_rows": 80, "blocks": 1, "flops": 1e14, "folder": tmp_path, "results": tmp_path / "scaling.json"}
    scaling.main(only_tables=False, docs=False, **options)
    saved = json.loads((tmp_path / "scaling.json").read_text())
    assert [check["rows"] for check in saved["checks"]] == [40, 80] and saved["layers"] == 4
    assert "measured / predicted" in capsys.readouterr().out
    scaling.main(only_tables=False, docs=True, **options)
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("after\n") and "old" not in written
    assert "| GPT-2 124M | 48 |" in written
    for table in written.split("\n\n")[2:-1]:
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
