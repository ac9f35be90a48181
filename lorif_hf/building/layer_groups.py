"""Layers in groups that fit into memory, where all of them together do not."""

from collections.abc import Callable, Sequence

import torch

from ..storage.layout import ModuleEntry
from .machine import machine_memory


def layer_groups(
    entries: Sequence[ModuleEntry], size: Callable[[ModuleEntry], int], limit: int | None
) -> list[list[ModuleEntry]]:
    """The layers in their order, as many at once as fit; those that share their inputs together.

    Args:
        entries (`Sequence[ModuleEntry]`): the layers.
        size (`Callable`): bytes that a layer takes.
        limit (`int` or `None`): bytes that a group may take. Layers that share their inputs, or a single one, that
            take more are a group all the same.
    """
    units: dict[str, list[ModuleEntry]] = {}
    for entry in entries:
        units.setdefault(entry.input_of or entry.name, []).append(entry)
    groups: list[list[ModuleEntry]] = []
    room = 0
    for unit in units.values():
        needed = sum(map(size, unit))
        if not groups or (limit is not None and needed > room):
            groups.append([])
            room = 0 if limit is None else limit
        groups[-1] += unit
        room -= needed
    return groups


def memory_for_layers(max_memory: int | None, device: torch.device) -> int | None:
    """Bytes that what is kept of all layers at once may take: what the user allows, else half of what the device has
    (a GPU: of what is free of it); `None`: nobody knows."""
    if max_memory is not None:
        return max_memory
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0] // 2
    machine = machine_memory()
    return None if machine is None else machine // 2
