"""Layers in groups that fit into memory."""

import pytest
import torch

from lorif_hf.building import layer_groups as module
from lorif_hf.building.layer_groups import layer_groups, memory_for_layers
from lorif_hf.storage.layout import ModuleEntry


def entry(name, size, of=None):
    return ModuleEntry(name, "linear", size, 1, size, 1, "", input_of=of)


ENTRIES = [entry("q", 5), entry("k", 2, "q"), entry("o", 4), entry("v", 2, "q"), entry("down", 8)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, [["q", "k", "v", "o", "down"]]),
        (21, [["q", "k", "v", "o", "down"]]),
        (20, [["q", "k", "v", "o"], ["down"]]),
        (12, [["q", "k", "v"], ["o", "down"]]),
        (9, [["q", "k", "v"], ["o"], ["down"]]),
        (1, [["q", "k", "v"], ["o"], ["down"]]),  # a group that is too large is one all the same
    ],
)
def test_groups_are_as_large_as_fits_and_keep_shared_inputs_together(limit, expected):
    groups = layer_groups(ENTRIES, lambda e: e.d1, limit)
    assert [[e.name for e in group] for group in groups] == expected


def test_no_layers_are_no_group():
    assert layer_groups([], lambda e: e.d1, 10) == []


def test_the_limit_is_the_users_or_half_of_the_machine(monkeypatch):
    monkeypatch.setattr(module, "machine_memory", lambda: 16 << 30)
    assert memory_for_layers(123, torch.device("cpu")) == 123
    assert memory_for_layers(None, torch.device("cpu")) == 8 << 30
    monkeypatch.setattr(module, "machine_memory", lambda: None)
    assert memory_for_layers(None, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 80 << 30))
    assert memory_for_layers(None, torch.device("cuda")) == 5 << 30
