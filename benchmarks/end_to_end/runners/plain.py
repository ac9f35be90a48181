"""No system at all: a forward and backward pass of the rows, weight gradients included. Stores and scores nothing."""

from pathlib import Path
from typing import Any

import torch

from ..measuring import Bed, run, summed_loss


def _pass(model: Any, rows: torch.Tensor, batch_size: int) -> None:
    for start in range(0, len(rows), batch_size):
        summed_loss(model, rows[start : start + batch_size]).backward()
        model.zero_grad()


def build(bed: Bed, model: Any, store: Path, variant: str) -> dict[str, Any]:
    _pass(model, bed.rows("train"), bed.batch_size)
    return {}


def open_index(bed: Bed, model: Any, store: Path, variant: str) -> tuple[Any, int]:
    return model, bed.batch_size


def query(opened: tuple[Any, int], rows: torch.Tensor) -> torch.Tensor:
    _pass(opened[0], rows, opened[1])
    return torch.empty(len(rows), 0)


if __name__ == "__main__":
    run(build, open_index, query)
