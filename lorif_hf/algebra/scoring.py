"""Scores of stored factors against preconditioned queries: products of blocks that fit the cache."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


BLOCK_NUMBERS = 1 << 19  # numbers in a buffer: 2 MiB of float32, what a core reads back faster than from memory
# Examples are multiplied and summed over their pairs by so many: the last few of another number would be summed in
# another order (torch sums columns by four vectors, of 16 numbers at most). Those stored whole are multiplied only.
ROWS, DENSE_ROWS = 64, 16
_FEW_PRODUCTS = 24  # from so many queries times further pairs on, rebuilding the gradients is the cheaper way


class Workspace:
    """The buffers of one thread, made once: memory that is asked for anew in every block costs a page fault a page."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor of this shape, of whatever numbers; valid until the name is taken again."""
        last = self._last.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last
        numbers = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < numbers:
            buffer = self._buffers[name] = torch.empty(numbers, dtype=dtype)
        self._last[name] = buffer[:numbers].view(shape)
        return self._last[name]


@dataclass(frozen=True)
class QueryGroup:
    """Preconditioned queries of one layer that are held in the same form: whole, or as products left^T right.

    Args:
        numbers (`Tensor`): int64 (g,), which of the queries these are, ascending.
        left (`Tensor`): the matrices, (g, d1, d2); with `right`: (g, k, d1).
        right (`Tensor`, *optional*): (g, k, d2).
    """

    numbers: Tensor
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
    elif (left.shape[1] - 1) * len(group.numbers) >= _FEW_PRODUCTS:
        part = _rebuilt_products(group, left, right, scales, workspace)
    else:
        part = _products(group, left, right, scales, workspace)
    part = part[:, : scores.shape[1]]
    if len(part) == len(scores):
        scores += part
    else:
        scores.index_add_(0, group.numbers, part)


def _products(group: QueryGroup, left: Tensor, right: Tensor, scales: Tensor | None, workspace: Workspace) -> Tensor:
    """u^T Q~ of every pair and query, times v: c D operations for a query and example."""
    queries, d1, d2 = group.left.shape
    count, pairs, _ = left.shape
    rows, columns = left.reshape(-1, d1), right.reshape(-1, d2)
    sums = workspace.take("sums", queries, len(rows), dtype=left.dtype)
    step = max(1, BLOCK_NUMBERS // max(1, len(rows) * d2))
    for start in range(0, queries, step):
        some = group.left[start : start + step]
        images = workspace.take("images", len(some), len(rows), d2, dtype=left.dtype)
        torch.bmm(rows.expand(len(some), -1, -1), some, out=images)
        torch.sum(images.mul_(columns), dim=2, out=sums[start : start + step])
    return _over_pairs(sums.view(queries, count, pairs), scales)


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
        some = slice(start, min(start + step, queries))
        width = (some.stop - start) * rank
        images = workspace.take("images", width, len(rows), dtype=left.dtype)
        others = workspace.take("others", width, len(rows), dtype=left.dtype)
        torch.mm(group.left[some].flatten(0, 1), rows.T, out=images)
        torch.mm(group.right[some].flatten(0, 1), columns.T, out=others)
        torch.sum(images.mul_(others).view(-1, rank, len(rows)), dim=1, out=sums[some])
    return _over_pairs(sums.view(queries, count, pairs), scales)


def _rebuilt_products(
    group: QueryGroup, left: Tensor, right: Tensor, scales: Tensor | None, workspace: Workspace
) -> Tensor:
    """The products with the examples' gradients, rebuilt some rows of the matrix at a time.

    Rebuilding takes c D operations an example, but then each query takes D, however many pairs there are.
    """
    queries, d1, d2 = group.left.shape
    count = len(left)
    scores = workspace.take("sums", queries, count, dtype=left.dtype).zero_()
    if scales is not None:
        scaled = workspace.take("others", *right.shape, dtype=left.dtype)
        right = torch.mul(right, scales.unsqueeze(2), out=scaled)
    step = max(1, min(d1, BLOCK_NUMBERS // max(1, count * d2)))
    for start in range(0, d1, step):
        stop = min(start + step, d1)
        gradients = workspace.take("images", count, stop - start, d2, dtype=left.dtype)
        torch.bmm(left[:, :, start:stop].mT, right, out=gradients)
        scores.addmm_(group.left[:, start:stop].flatten(1), gradients.flatten(1).T)
    return scores


def _dense_products(group: QueryGroup, matrices: Tensor, workspace: Workspace) -> Tensor:
    scores = workspace.take("sums", len(group.numbers), len(matrices), dtype=matrices.dtype)
    return torch.mm(group.matrices().flatten(1), matrices.flatten(1).T, out=scores)


def _over_pairs(sums: Tensor, scales: Tensor | None) -> Tensor:
    """(g, n, c) to (g, n)."""
    if scales is not None:
        sums.mul_(scales)
    return sums.squeeze(2) if sums.shape[2] == 1 else sums.sum(dim=2)


def bilinear_scores(preconditioned: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """s(q, i) = sum_j u_ij^T Q~_q v_ij, the inner product of Q~_q with left_i @ right_i^T.

    The training side is only read, never transformed: everything that depends on the curvature is in Q~ = H^-1 G~_q.

    Args:
        preconditioned (`Tensor`): (Q, d1, d2), the preconditioned query gradients.
        left (`Tensor`): (n, d1, c).
        right (`Tensor`): (n, d2, c).

    Returns:
        `Tensor`: (Q, n) in the dtype of `preconditioned`. Positive: a proponent (training on it lowers the loss).

    Source: LoRIF (arXiv:2601.21929), section 3; the order of the products is ours (DESIGN, fact 1).
    """
    return _blocked(preconditioned, left.mT, right.mT, left.shape[2])


def dense_scores(preconditioned: Tensor, matrices: Tensor) -> Tensor:
    """Inner products of queries (Q, d1, d2) with gradients stored whole (n, d1, d2): (Q, n)."""
    return _blocked(preconditioned, matrices, None, None)


def _blocked(preconditioned: Tensor, left: Tensor, right: Tensor | None, pairs: int | None) -> Tensor:
    queries, d1, d2 = preconditioned.shape
    scores = preconditioned.new_zeros(queries, len(left))
    group, workspace, dtype = QueryGroup(torch.arange(queries), preconditioned), Workspace(), preconditioned.dtype
    step = rows_per_block(pairs, d1, d2)
    for start in range(0, len(left) if queries else 0, step):
        rows = slice(start, start + step)
        wide = left[rows].to(dtype), None if right is None else right[rows].to(dtype)
        add_scores(scores[:, rows], group, *wide, None, workspace)
    return scores
