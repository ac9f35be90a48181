"""Rows that are read or collated with random numbers (masks, crops): drawn once, from a seed and the row's number."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError
from .fingerprint import by_value
from .random_state import generators_of, random_state_kept, seed


_SEED = "lorif-hf 0"  # of the random numbers that reading and collating a row draws

Read = Callable[[int], Any]
"""A row, read and collated by itself with whatever random numbers come; its batch is the last of what it gives."""


def draws_random(read: Read, rows: Iterable[int], *objects: Any) -> bool:
    """Whether one of these rows, read and collated again, is other tensors. The random state is kept.

    Args:
        read (`Callable`): gives a row.
        rows: numbers of the rows to try.
        objects: what draws, as of [`random_state_kept`].
    """
    with random_state_kept(*objects):
        for row in rows:
            try:
                first, second = read(row)[-1], read(row)[-1]
            except DatasetError:
                continue  # is told when the row's turn comes
            if any(not _same(value, second.get(key)) for key, value in first.items()):
                return True
    return False


def drawn_once(read: Read, rows: Sequence[int], *objects: Any) -> list[Any]:
    """Each of these rows, the same whenever and with whatever others it is asked for; arguments as of
    [`draws_random`]. The random state is that after the last row."""
    read(rows[0])  # some make their generator when they are first asked
    generators = generators_of(*objects)
    drawn = []
    for row in rows:
        seed(f"{_SEED} {row}", generators)
        drawn.append(read(row))
    return drawn


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    return by_value(first) == by_value(second)
