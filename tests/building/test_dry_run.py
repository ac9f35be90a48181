"""What would fail at the end fails at the beginning."""

import logging
import pytest
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.building import dry_run
from lorif_hf.coverage import Coverage, Untracked
from lorif_hf.curvature import curvature_of
from lorif_hf.errors import ConfigError, DiskFullError, ProcessingClassError
from lorif_hf.storage.layout import ModuleEntry


WIDE = [ModuleEntry(f"layers.{i}", "linear", 4096, 11008, 4096, 11008, "") for i in range(32)]


def test_the_first_pass_says_what_it_needs_and_what_needs_less(monkeypatch):
    monkeypatch.setattr(dry_run, "machine_memory", lambda: 16 << 30)
    first_pass = curvature_of(InfluenceConfig()).first_pass
    message = r"Whitening needs 16.4 GiB for 32 layers \(the widest, 'layers.0', is 4096 x 11008\); this machine has"
    with pytest.raises(ConfigError, match=message):
        raise dry_run.first_pass_too_large(first_pass, WIDE)
    monkeypatch.setattr(dry_run, "machine_memory", lambda: None)
    assert "this machine" not in str(dry_run.first_pass_too_large(first_pass, WIDE))


def test_too_small_a_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 1 << 30)
    config = InfluenceConfig()
    per_row = sum(3 * ((4096 + 11008) // 8 + 4) for _ in WIDE)
    rows = (3 << 30) // per_row
    with pytest.raises(DiskFullError, match=rf"factors of {rows} rows take 3.00 GiB; the disk of .* has 1.00 GiB"):
        dry_run.check_disk(tmp_path / "index" / "deep", config, WIDE, rows)
    dry_run.check_disk(tmp_path / "index", config, WIDE, rows // 4)
    # What is there already needs no room.
    (tmp_path / "index").mkdir()
    with (tmp_path / "index" / "there.safetensors").open("wb") as file:
        file.truncate(2 << 30)
    dry_run.check_disk(tmp_path / "index", config, WIDE, rows)


def test_a_processing_class_that_cannot_be_saved_is_refused_before_the_pass(tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise ValueError("no vocabulary")

    with pytest.raises(ProcessingClassError, match=r"Broken cannot be saved.*ValueError: no vocabulary"):
        InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index", processing_class=Broken())
    assert not list(tmp_path.rglob("*.safetensors"))
    dry_run.check_processing_class(None)


@pytest.mark.parametrize("tracked, level", [(3, logging.WARNING), (5, logging.INFO)])
def test_coverage_is_told_and_little_of_it_is_warned_of(caplog, tracked, level):
    with caplog.at_level(logging.INFO):
        dry_run.tell_coverage(Coverage(tracked, 10, [Untracked("a", 10 - tracked, "a norm")]))
    (record,) = caplog.records
    assert record.levelno == level and f"{tracked * 10}.0% of the trained parameters" in record.getMessage()


def test_memory_that_ends_while_whitening_is_not_answered_with_a_smaller_batch(tmp_path, monkeypatch):
    def none_left(*sizes):
        raise MemoryError

    monkeypatch.setattr(SecondMoments, "zeros", none_left)
    with pytest.raises(ConfigError, match=r"Whitening needs .* GiB for 1 layer .*Set a lower max_projection_dim"):
        InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index")
