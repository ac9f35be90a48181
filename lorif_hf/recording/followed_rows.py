"""Tables into which a followed weight was put row by row: PEFT trains single tokens so."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.sides import OneHot, Side
from ..layers import BatchShape
from ..layers.embedding import lookup
from .layer_hook import LayerHook


class ReplacedRows:
    """Which tables of a pass have rows that are a followed weight's, and what is done with these.

    Args:
        hook_of (`Callable`): the hook of the weight that a tensor is, if any.
    """

    def __init__(self, hook_of: Callable[[Tensor], LayerHook | None]):
        self._hook_of = hook_of
        self._tables: dict[int, tuple[Tensor, list[tuple[LayerHook, Tensor]]]] = {}

    def note(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        """Take note of a table, (V, H), some rows of which were replaced by those of a weight, (n, H)."""
        if func not in _REPLACING:
            return
        table, dim, index, source = _replaced(*args, **kwargs)
        hook = self._hook_of(source) if dim == 0 and source.dim() == 2 else None
        if hook is None:
            return
        # An adapter after the other: what a later one replaces is no longer an earlier one's.
        before = [
            (other, torch.where(torch.isin(rows, index), -1, rows))
            for other, rows in self._tables.get(table.data_ptr(), (table, []))[1]
        ]
        self._tables[result.data_ptr()] = (result, [*before, (hook, index)])

    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> Tensor:
        """The result of a call as the hooks of the replaced rows give it back."""
        for hook, given, returned, common, turned in self._uses(func, args, kwargs):
            replaced = hook.see(given, result, returned, common, turned)
            result = result if replaced is None else replaced
        return result

    def _uses(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[LayerHook, Side | None, Callable[[Tensor], Side | None], bool, bool]]:
        read = _READING.get(func) if self._tables else None
        if read is None:
            return
        tokens, table, padding = read(*args, **kwargs)
        for hook, index in self._tables.get(table.data_ptr(), (table, []))[1]:
            if func is F.embedding:
                places = torch.full((len(table) + 1,), -1, device=index.device)
                places[index] = torch.arange(len(index), device=index.device)  # an index of -1 is the row too many
                if padding is not None:
                    places[padding % len(table)] = -1
                told = lookup(places[tokens], hook.tracked.weight, hook.batch)
                given = told.inputs
                if isinstance(given, OneHot):
                    given = OneHot(given.ids, len(index), given.dtype)
                # A product with the transpose of the kind's matrix: the lookup stands where the gradient does.
                yield hook, given, told.output_gradients, told.common, True
            else:
                yield hook, hook.batch.per_example(tokens), _columns(hook.batch, index), False, False


def _columns(batch: BatchShape, index: Tensor) -> Callable[[Tensor], Tensor | None]:
    """dY of the columns of a product that are a weight's, (B, T, n)."""

    def of(gradient: Tensor) -> Tensor | None:
        apart = batch.per_example(gradient)
        return None if apart is None else apart[..., index.clamp_min(0)] * (index >= 0)

    return of


def _replaced(input: Tensor, dim: int, index: Tensor, source: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
    return input, dim, index, source


def _embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> tuple[Tensor, Tensor, int | None]:
    return input, weight, padding_idx


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> tuple[Tensor, Tensor, int | None]:
    return input, weight, None


_REPLACING = {Tensor.index_copy, torch.index_copy}
_READING: dict[Any, Callable[..., tuple[Tensor, Tensor, int | None]]] = {F.embedding: _embedding, F.linear: _linear}
