"""How many tokens an example has."""

from typing import Any

import torch
from torch import Tensor

from ..tasks.base import Task
from ..tasks.cross_entropy import IGNORED
from ..tasks.segments import SEGMENTS


def tokens_per_example(batch: dict[str, Any], size: int, task: Task | None = None) -> Tensor:
    """int64 (B,) tokens of each example in a batch, padding not counted; zero where the input is not made of tokens.

    Args:
        batch (`dict`): tensors; an example may be several sequences, each with its own tokens.
        size (`int`): B.
        task (`Task`, *optional*): one whose labels are tokens that the input does not hold: they count too.
    """
    if SEGMENTS in batch:
        lengths: Tensor = batch[SEGMENTS].lengths
        return lengths
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    counts = torch.zeros(size, dtype=torch.int64)
    samples = {"input_values", "input_features"} & batch.keys()  # of sound, not tokens
    if isinstance(mask, Tensor) and mask.dim() in (2, 3) and not samples:
        counts = mask.reshape(len(mask), -1).sum(dim=1).to("cpu", torch.int64)
    elif isinstance(ids, Tensor) and ids.dim() in (2, 3):
        counts = torch.full((len(ids),), ids[0].numel())
    if len(counts) % size == 0:
        counts = counts.view(-1, size).sum(dim=0)
    if task is not None and task.label_kind == "tokens" and not task.labels_each_token and "labels" in batch:
        counts = counts + (batch["labels"] != IGNORED).sum(dim=1).cpu()
    return counts
