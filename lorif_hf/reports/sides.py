"""Rankings of different lengths as tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def as_tensors(scores: list[list[float]], rows: list[list[int]], shape: Sequence[int]) -> list[Tensor]:
    """Scores, float32, and rows, int64, of all rankings, (*shape, k): NaN and -1 where one has fewer.

    Args:
        scores, rows (`list[list]`): of each ranking, as many as the shape makes.
        shape (`Sequence[int]`): (Q,), or (Q, T) of tokens.
    """
    longest = max(map(len, rows), default=0)
    values = [[*held, *[math.nan] * (longest - len(held))] for held in scores]
    row_ids = [[*held, *[-1] * (longest - len(held))] for held in rows]
    whole = torch.tensor(values, dtype=torch.float32), torch.tensor(row_ids, dtype=torch.int64)
    return [tensor.view(*shape, longest) for tensor in whole]
