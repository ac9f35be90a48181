"""`nn.Embedding`: a table of which each token takes a row."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.sides import OneHot
from .base import BatchShape, LayerKind, MatrixShape, Tokens, first_argument


class Embedding(LayerKind):
    """`nn.Embedding`: y = x W of one-hot rows x; its weight (V, H) is kept I x O.

    Where an output head shares the weight, that is followed, and its use counts too: there the logits' gradient is the
    side of V.
    """

    name = "embedding"
    linear = False
    forward_of = nn.Embedding

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        # With max_norm a call changes the weight; with scale_grad_by_freq a row's gradient depends on its batch.
        plain = isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq
        return plain and parameter == "weight"

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        rows, width = getattr(module, parameter).shape
        return MatrixShape(rows, width, in_width=min(rows, width))

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.to_dense() if weight.is_sparse else weight  # a gradient is, with sparse=True

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        weight: Tensor = getattr(module, parameter)
        return lookup(first_argument(args, kwargs), weight, batch, module.padding_idx)  # type: ignore[arg-type]


def lookup(ids: Tensor, table: Tensor, batch: BatchShape, padding: int | None = None) -> Tokens:
    """What a call does with a table, (rows, width), that looks up the rows `ids`.

    Args:
        ids (`Tensor`): integers of any shape; its first axis is the batch's, or all examples have them in common.
        table (`Tensor`): what is looked up in.
        batch (`BatchShape`): the batch.
        padding (`int`, *optional*): a row to which no gradient goes.
    """
    apart, common = _by_example(ids, batch)
    if apart is None:
        return Tokens(None, batch.per_example)
    apart = apart.long()
    # A copy in any case: the caller may change his own.
    apart = apart.clone() if padding is None else torch.where(apart == padding % len(table), -1, apart)
    return Tokens(OneHot(apart, len(table), table.dtype), batch.per_example, common)


def _by_example(ids: Tensor, batch: BatchShape) -> tuple[Tensor | None, bool]:
    """ids as (B, T), and whether all examples have them in common, as positions. `None`: they cannot be told apart."""
    examples, rows = batch.examples, len(ids) if ids.dim() else 0
    if examples == 1:
        return ids.reshape(1, -1), False
    sequences = examples * batch.sequences
    of_tokens = batch.tokens is not None and rows == examples * batch.tokens
    if (of_tokens or rows in (examples, sequences)) and _may_be_positions(ids):
        return None, False
    if batch.sequences > 1 and ids.dim() > 1 and rows == sequences:
        return ids.reshape(examples, -1), False
    if ids.dim() == 1 and of_tokens:
        return ids.reshape(examples, -1), False  # of a model that flattens its tokens
    if (rows == 1 and ids.dim() > 1) or (rows != examples and ids.dim() == 1):
        return ids.reshape(1, -1).expand(sequences, -1).reshape(examples, -1), True
    return (None if rows != examples else ids.reshape(examples, -1)), False


def _may_be_positions(ids: Tensor) -> bool:
    """Whether ids that have as many rows as there are examples, or tokens of all of them, look as if all examples had
    them in common: 0, 1, 2, ... (of a decoder too, whose tokens are others), or made of the distances between tokens.
    """
    if ids.dim() == 1:
        return len(ids) > 1 and bool((ids.diff() == 1).all())
    if ids.dim() > 2 or ids.shape[0] != ids.shape[1]:
        return False
    return bool((ids[1:, 1:] == ids[:-1, :-1]).all()) and bool((ids != ids[0, 0]).any())
