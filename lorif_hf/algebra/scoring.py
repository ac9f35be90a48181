"""Scores of stored factors against preconditioned queries: products of blocks that fit the cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


# Numbers in a buffer: 4 MiB of float32. Fewer fit the cache better, but threads wait for Python's lock at every call.
BLOCK_NUMBERS = 1 << 20
# Numbers that are kept of the queries, beside them: 64 MiB of float32.
KEPT_NUMBERS = 1 << 24
# Examples are multiplied and summed by so many: the last few of another number could be summed in another order (of
# four vectors of 16 numbers at most). Those stored whole are multiplied only.
ROWS, DENSE_ROWS = 64, 16
_REBUILT = 256  # examples whose gradients are rebuilt together: of more, only thin slices would fit a buffer
_FEW_PRODUCTS = 24  # from so many queries times further pairs on, rebuilding the gradients is the cheaper way


class Workspace:
    """The buffers of one thread, made once: memory that is asked for anew in every block costs a page fault a page."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._kept: dict[tuple[int, int], tuple[QueryGroup, Tensor]] = {}
        self._room = KEPT_NUMBERS

    def kept(self, group: "QueryGroup", number: int, make: Callable[[], Tensor]) -> Tensor:
        """What is made of a group of queries, by a number: made once, or each time where it finds no more room."""
        at = id(group), number
        if at in self._kept:
            return self._kept[at][1]
        made = make()
        if made.numel() <= self._room:
            self._room -= made.numel()
            self._kept[at] = group, made  # the group too: a new one must not get its id
        return made

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor of this shape, of whatever numbers; valid until the name is taken again."""
        last = self._last.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < size:
            # Not what was left in memory: rows that only fill up are multiplied too, and denormal numbers are slow.
            buffer = self._buffers[name] = torch.zeros(size, dtype=dtype)
        self._last[name] = buffer[:size].view(shape)
        return self._last[name]


@dataclass(frozen=True)
class QueryGroup:
    """Preconditioned queries of one layer that are held in the same form: whole, or as products left^T right.

    Args:
        query_ids (`Tensor`): int64 (g,), which of the queries these are, ascending.
        left (`Tensor`): the matrices, (g, d1, d2); with `right`: (g, k, d1).
        right (`Tensor`, *optional*): (g, k, d2).
    """

    query_ids: Tensor
    left: Tensor
    right: Tensor | None = None

    def matrices(self) -> Tensor:
        """Q~, (g, d1, d2)."""
        return self.left if self.right is None else self.left.mT @ self.right


def rows_per_block(pairs: int | None, d1: int, d2: int) -> int:
    """Examples whose numbers, unpacked, fit a buffer; `None`: stored whole. A multiple of `ROWS` (`DENSE_ROWS`)."""
    rows = DENSE_ROWS if pairs is None else ROWS
    fitting = BLOCK_NUMBERS // (d1 * d2 if pairs is None else pairs * (d1 + d2))
    return max(rows, fitting // rows * rows)


def add_scores(
    scores: Tensor,
    group: QueryGroup,
    left: Tensor,
    right: Tensor | None,
    scales: Tensor | None,
    workspace: Workspace,
) -> None:
    """Add the inner products of a group of queries with some examples to the scores of all queries.

    Args:
        scores (`Tensor`): (Q, n), changed in place.
        group (`QueryGroup`): g of the Q queries.
        left (`Tensor`): (n, c, d1), in the dtype of the queries; gradients stored whole: (n, d1, d2). There may be
            more examples than scores; they are left out.
        right (`Tensor` or `None`): (n, c, d2).
        scales (`Tensor` or `None`): (n, c), by which the c pairs are multiplied.
        workspace (`Workspace`): of this thread.
    """
    if right is None:
        part = _dense_products(group, left, workspace)
    elif group.right is not None:
        part = _low_rank_products(group, left, right, scales, workspace)
    elif (left.shape[1] - 1) * group.left.shape[0] >= _FEW_PRODUCTS:
        part = _rebuilt_products(group, left, right, scales, workspace)
    else:
        part = _products(group, left, right, scales, workspace)
    if part.shape[1] > scores.shape[1]:
        part = part[:, : scores.shape[1]]
    if part.shape[0] == scores.shape[0]:
        scores += part
    else:
        scores.index_add_(0, group.query_ids, part)


def _products(group: QueryGroup, left: Tensor, right: Tensor, scales: Tensor | None, workspace: Workspace) -> Tensor:
    """u^T Q~ of every pair and query, times v: c D operations for a query and example."""
    queries, d1, d2 = group.left.shape
    count, pairs, _ = left.shape
    vectors = count * pairs
    rows, columns = left.reshape(1, vectors, d1), right.reshape(vectors, d2).numpy()
    sums = workspace.take("sums", queries, vectors, dtype=left.dtype)
    step = max(1, BLOCK_NUMBERS // max(1, vectors * d2))
    for start in range(0, queries, step):
        chunk = group.left if step >= queries else group.left[start : start + step]
        images = workspace.take("images", chunk.shape[0], vectors, d2, dtype=left.dtype)
        torch.bmm(rows if queries == 1 else rows.expand(chunk.shape[0], -1, -1), chunk, out=images)
        # One pass, where torch takes one for the product and one for the sum.
        np.einsum("qnd,nd->qn", images.numpy(), columns, out=sums.numpy()[start : start + step])
    return _over_pairs(sums, scales, count, workspace)


def _low_rank_products(
    group: QueryGroup, left: Tensor, right: Tensor, scales: Tensor | None, workspace: Workspace
) -> Tensor:
    """Where Q~ = L^T R, (L u)^T (R v): c k (d1 + d2) operations for a query and example."""
    assert group.right is not None
    queries, rank, _ = group.left.shape
    count, pairs, _ = left.shape
    rows, columns = left.reshape(count * pairs, -1), right.reshape(count * pairs, -1)
    sums = workspace.take("sums", queries, len(rows), dtype=left.dtype)
    step = max(1, BLOCK_NUMBERS // max(1, rank * len(rows)))
    for start in range(0, queries, step):
        chunk = slice(start, min(start + step, queries))
        width = (chunk.stop - start) * rank
        images = workspace.take("images", width, len(rows), dtype=left.dtype)
        others = workspace.take("others", width, len(rows), dtype=left.dtype)
        torch.mm(group.left[chunk].flatten(0, 1), rows.T, out=images)
        torch.mm(group.right[chunk].flatten(0, 1), columns.T, out=others)
        left_images, right_images = (side.numpy().reshape(-1, rank, len(rows)) for side in (images, others))
        np.einsum("qkn,qkn->qn", left_images, right_images, out=sums.numpy()[chunk])
    return _over_pairs(sums, scales, count, workspace)


def _rebuilt_products(
    group: QueryGroup, left: Tensor, right: Tensor, scales: Tensor | None, workspace: Workspace
) -> Tensor:
    """The products with the examples' gradients, rebuilt for some examples, and some rows of the matrix, at a time.

    Rebuilding takes c D operations an example, but then each query takes D, however many pairs there are.
    """
    queries, d1, d2 = group.left.shape
    count = len(left)
    scores = workspace.take("sums", queries, count, dtype=left.dtype).zero_()
    if scales is not None:
        scaled = workspace.take("others", *right.shape, dtype=left.dtype)
        right = torch.mul(right, scales.unsqueeze(2), out=scaled)
    step = max(1, min(d1, BLOCK_NUMBERS // (_REBUILT * d2)))
    for start in range(0, d1, step):
        stop = min(start + step, d1)
        matrix_rows = group.left[:, start:stop].flatten(1)
        for first in range(0, count, _REBUILT):
            chunk = slice(first, min(first + _REBUILT, count))
            gradients = workspace.take("images", chunk.stop - first, stop - start, d2, dtype=left.dtype)
            torch.bmm(left[chunk, :, start:stop].mT, right[chunk], out=gradients)
            scores[:, chunk].addmm_(matrix_rows, gradients.flatten(1).T)
    return scores


def _dense_products(group: QueryGroup, matrices: Tensor, workspace: Workspace) -> Tensor:
    scores = workspace.take("sums", len(group.query_ids), len(matrices), dtype=matrices.dtype)
    return torch.mm(group.matrices().flatten(1), matrices.flatten(1).T, out=scores)


def _over_pairs(sums: Tensor, scales: Tensor | None, count: int, workspace: Workspace) -> Tensor:
    """(g, n c) to (g, n)."""
    queries, pairs = sums.shape[0], sums.shape[1] // count
    if pairs == 1 and scales is None:
        return sums
    totals = workspace.take("over pairs", queries, count, dtype=sums.dtype)
    products = sums.numpy().reshape(queries, count, pairs)
    if scales is None:
        np.einsum("qnc->qn", products, out=totals.numpy())
    else:
        np.einsum("qnc,nc->qn", products, scales.numpy(), out=totals.numpy())
    return totals
