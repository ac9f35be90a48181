"""What the machine has."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lorif_hf.building import machine


def test_the_memory_of_this_machine_is_known():
    assert (machine.machine_memory() or 1 << 40) > 1 << 28


@pytest.mark.parametrize("limit, expected", [("1073741824", 1 << 30), ("max", 8 << 30), ("99999999999999", 8 << 30)])
def test_a_container_may_take_less(monkeypatch, limit, expected):
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PHYS_PAGES": 2 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert machine.machine_memory() == expected


def test_a_system_that_does_not_tell(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(machine.os, "sysconf", unknown)
    assert machine.machine_memory() is None


def test_the_disk_is_that_of_the_first_folder_that_is_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=7))
    assert machine.free_disk(tmp_path / "not" / "there") == 7 and asked == [tmp_path]
