"""Functions that look up rows of a followed weight: the embeddings of whoever does not call his own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import BatchShape, Tokens
from ..layers.embedding import lookup


@dataclass(frozen=True)
class Lookup:
    """A call that looks up rows.

    Args:
        table (`Tensor`): in what.
        rows: which: integers of any shape, a slice, a list, a mask of all rows.
        padding (`int`, *optional*): a row to which no gradient goes.
    """

    table: Tensor
    rows: Any
    padding: int | None = None

    def tokens(self, batch: BatchShape) -> Tokens | None:
        """What it does with the table (V, H); `None`: it takes something else than whole rows of it."""
        rows = self.rows
        if isinstance(rows, Tensor) and rows.dtype in (torch.int64, torch.int32):
            ids = torch.where(rows < 0, rows + len(self.table), rows)
        elif isinstance(rows, int | slice | list) or (isinstance(rows, Tensor) and rows.dim() == 1):
            ids = torch.arange(len(self.table), device=self.table.device)[rows]
        else:
            return None
        return lookup(ids, self.table, batch, self.padding)


def lookup_of(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Lookup | None:
    """What a call looks up, where it is of a function that does."""
    read = _LOOKUPS.get(func)
    found = None if read is None else read(*args, **kwargs)
    return found if found is not None and isinstance(found.table, Tensor) else None


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Lookup | None:
    return Lookup(weight, input, padding_idx) if max_norm is None and not scale_grad_by_freq else None


def _selected(input: Any, dim: int, index: Any) -> Lookup | None:
    return Lookup(input, index) if dim == 0 else None


def _indexed(table: Any, index: Any) -> Lookup:
    return Lookup(table, index[0] if isinstance(index, tuple) and len(index) == 1 else index)


_LOOKUPS: dict[Any, Callable[..., Lookup | None]] = {
    F.embedding: _embedding,
    torch.index_select: _selected,
    Tensor.index_select: _selected,
    Tensor.__getitem__: _indexed,
}
