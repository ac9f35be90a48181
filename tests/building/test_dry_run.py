"""What would fail at the end fails at the beginning."""

import logging

import pytest
import torch
from tiny import make_gpt2, make_rows
from torch import nn

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.building import dry_run
from lorif_hf.building.sizes import sizes_of, with_shards
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
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 25 << 30)
    config = InfluenceConfig(max_projection_dim=None)
    sizes = sizes_of(config, WIDE, 1_000_000)
    assert sizes.fixed == 32 * 4 * (4096**2 + 11008**2)
    folder = tmp_path / "index" / "deep"
    with pytest.raises(DiskFullError) as caught:
        dry_run.check_disk(folder, sizes, 3 << 30)
    factors, tables = sizes.factors / 2**30, (sizes.noted + (3 << 30)) / 2**30
    assert str(caught.value) == (
        f"The index of 1000000 rows takes {(sizes.disk + (3 << 30)) / 2**30:.2f} GiB while it is built: {factors:.2f} "
        f"GiB of factors, 32.89 GiB of whiteners and eigenvectors, {tables:.2f} GiB of tables and texts. The disk of "
        f"{folder} has 25.00 GiB left. Choose a folder on another disk, or a smaller config: "
        "InfluenceConfig.sized(model, num_examples, index_size=...) finds the best that fits."
    )
    dry_run.check_disk(folder, sizes_of(config, WIDE[:4], 1000))
    # What is there already needs no room.
    (tmp_path / "index").mkdir()
    with (tmp_path / "index" / "there.safetensors").open("wb") as file:
        file.truncate(sizes.disk - (24 << 30))
    dry_run.check_disk(tmp_path / "index", sizes)


def test_whiteners_count_twice_while_the_build_has_its_own(tmp_path, monkeypatch):
    sizes = sizes_of(InfluenceConfig(), WIDE, 10)
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 2 * sizes.fixed)
    with pytest.raises(DiskFullError):
        dry_run.check_disk(tmp_path, sizes)
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 2 * sizes.fixed + sizes.factors + sizes.noted)
    dry_run.check_disk(tmp_path, sizes)


def refused(sizes, machine, max_memory=None, monkeypatch=None):
    monkeypatch.setattr(dry_run, "machine_memory", lambda: machine)
    with pytest.raises(ConfigError) as caught:
        dry_run.check_room(sizes, max_memory, MODEL)
    return str(caught.value)


MODEL = nn.Linear(1 << 10, 1 << 10)  # 4 MiB
SIZED = " InfluenceConfig.sized(model, num_examples, max_memory=...) finds the best that fits."
NARROWER = " Set a lower max_projection_dim (half takes a quarter), or leave the layer out with exclude_modules."


def test_a_layer_that_is_wider_than_the_budget_is_named_with_the_least_that_works(monkeypatch):
    sizes = sizes_of(InfluenceConfig(max_projection_dim=None), WIDE, 1000)
    least = 4 * (4096**2 + 11008**2)
    assert refused(sizes, None, least - 1, monkeypatch) == (
        f"max_memory={least - 1} is too small for the whiteners of 'layers.0' and of the layers that must be there "
        f"with it: the least that works is {least} bytes. Allow as much.{NARROWER}"
    )
    dry_run.check_room(sizes, least, MODEL)


def test_a_layer_that_is_wider_than_the_machine_is_named(monkeypatch):
    sizes = sizes_of(InfluenceConfig(max_projection_dim=None), WIDE, 1000)
    needed = (sizes.group + sizes.moment) / 2**30
    assert refused(sizes, (4 << 30) + (1 << 22), None, monkeypatch) == (
        "This machine has 4.00 GiB of memory beside the model; the whiteners of 'layers.0' and of the layers that "
        f"must be there with it take {needed:.2f} GiB.{NARROWER}{SIZED}"
    )


def test_shards_that_are_too_large_are_refused_with_the_size_that_works(monkeypatch):
    config = InfluenceConfig(factor_rank=16, bits=4)
    sizes = sizes_of(config, WIDE, 1_000_000)
    machine = sizes.finish + (1 << 28)
    text = refused(sizes, machine, None, monkeypatch)
    assert "of memory beside the model; whiteners and the shards that are held at once take " in text
    assert f"At {sizes.per_example} bytes a row, set shard_size to " in text and text.endswith(SIZED)
    rows = int(text.split("set shard_size to ")[1].split(" ", maxsplit=1)[0])
    dry_run.check_room(with_shards(sizes, rows), None, MODEL)
    with pytest.raises(ConfigError):
        dry_run.check_room(with_shards(sizes, rows + 1), None, MODEL)


def test_a_fit_and_a_curvature_file_that_are_too_large_are_refused(monkeypatch):
    logra = sizes_of(InfluenceConfig.logra(), WIDE, 100_000)
    assert "; the fit of 'layers.0' take" in refused(logra, logra.fit, None, monkeypatch)
    paper = sizes_of(InfluenceConfig.paper(), WIDE, 100_000)
    text = refused(paper, max(paper.fit, paper.finish - 1), None, monkeypatch)
    assert "; the curvature file, which is written at once, take" in text
    assert "Set a lower curvature_rank or a higher projection_factor" in text


def test_a_gpu_that_is_too_small_is_refused_by_its_free_memory(monkeypatch):
    sizes = sizes_of(InfluenceConfig(max_projection_dim=None), WIDE, 1000)
    monkeypatch.setattr(dry_run, "execution_device", lambda model: torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 28, 80 << 30))
    text = refused(sizes, 1 << 50, None, monkeypatch)
    assert text.startswith(
        "cuda:1 has 256.0 MiB left; the whiteners of 'layers.0' and of the layers that must be there"
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 34, 80 << 30))
    dry_run.check_room(sizes, None, MODEL)


def test_what_is_not_known_is_not_refused(monkeypatch):
    monkeypatch.setattr(dry_run, "machine_memory", lambda: None)
    dry_run.check_room(sizes_of(InfluenceConfig.logra(), WIDE, 100_000), None, MODEL)


def test_a_build_asks_before_its_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "machine_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"This machine has 0.0 MiB of memory beside the model; the whiteners of"):
        InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index")
    assert not (tmp_path / "index").exists()
    monkeypatch.undo()
    with pytest.raises(
        ConfigError, match=r"max_memory=1000 is too small for the whiteners of 'transformer.h.0.mlp.c_fc'"
    ):
        InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index", max_memory=1000)
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 1000)
    with pytest.raises(DiskFullError, match=r"The index of 6 rows takes 0.\d MiB while it is built"):
        InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index")


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
