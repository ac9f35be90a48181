"""Scores of pairs of sign vectors stored a bit a number: what a byte adds to u^T Q~ is looked up, not multiplied.

A vector times a matrix takes a multiplication for each of the matrix's numbers. A table of the 256 sums that eight of
its rows can make takes an addition for all eight ("method of the four Russians": Arlazarov, Dinic, Kronrod, Faradzev
1970).
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .quantization import look_up
from .scoring import ROWS, QueryGroup, Workspace


_MOST_QUERIES = 8  # of more, rebuilding the gradients once for all is as cheap or cheaper
_LEAST_PAIRS = 1 << 12  # of all examples: making the tables takes as long as multiplying a few hundred
_PAIRS = 1 << 14  # of a block
_PLACES = 1 << 20  # and the numbers of tables' rows that it holds at most
_TABLES = 1 << 18  # numbers in the tables of a block of columns: 1 MiB, some of it in the cache
_LEAST_COLUMNS, _MOST_COLUMNS = 32, 64  # of these: narrower rows take as long, wider ones fill the buffers


@dataclass(frozen=True)
class SignPairs:
    """Pairs of sign vectors as they are stored, in memory of the CPU.

    Args:
        left (`Tensor`): uint8 (n, c, ceil(d1 / 8)), the first number in the lowest bit; 1 is +1, 0 is -1.
        right (`Tensor`): uint8 (n, c, ceil(d2 / 8)).
        scales (`Tensor`): (n, c), by which the pairs are multiplied, in a floating-point type.
    """

    left: Tensor
    right: Tensor
    scales: Tensor


def looking_up_pays(group: QueryGroup, pairs: int, examples: int) -> bool:
    """Whether looking up is cheaper than multiplying: for few queries that are held whole, and many examples.

    Args:
        pairs (`int`): c.
        examples (`int`): all that are scored with these queries, so that equal ones are scored in the same way.
    """
    return group.right is None and len(group.query_ids) <= _MOST_QUERIES and pairs * examples >= _LEAST_PAIRS


def add_sign_scores(scores: Tensor, group: QueryGroup, stored: SignPairs, workspace: Workspace) -> None:
    """Add the inner products of queries that are held whole with some examples to the scores of all queries.

    Args:
        scores (`Tensor`): (Q, n), changed in place.
        group (`QueryGroup`): g of the Q queries, whole, float32.
        stored (`SignPairs`): the n examples.
        workspace (`Workspace`): of this thread.
    """
    # The longer vectors are looked up: the shorter ones are unpacked.
    turned = stored.left.shape[2] < stored.right.shape[2]
    looked_up, unpacked = (stored.right, stored.left) if turned else (stored.left, stored.right)
    matrices = group.left.mT if turned else group.left
    count, pairs, size = looked_up.shape
    fitting = min(_PAIRS // pairs, _PLACES // (pairs * size))
    step = max(ROWS, fitting // ROWS * ROWS)
    columns = _column_blocks(8 * unpacked.shape[2], size)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        places, offsets = _places(looked_up[rows], workspace)
        sums = workspace.take("sums", len(matrices), len(offsets))
        for block in columns:
            levels = workspace.take("right", len(offsets), block.stop - block.start)
            look_up(unpacked.numpy()[rows, :, block.start // 8 : block.stop // 8], 1, levels.numpy())
            for query, matrix in enumerate(matrices):
                tables = _tables(group, query, matrix, block, size, workspace)
                images = torch.embedding_bag(tables, places, offsets)[0].numpy()
                if block.start == 0:
                    np.einsum("nd,nd->n", images, levels.numpy(), out=sums[query].numpy())
                else:
                    sums[query] += torch.from_numpy(np.einsum("nd,nd->n", images, levels.numpy()))
        part = _over_pairs(sums, stored.scales[rows], workspace)
        if len(part) == len(scores):
            scores[:, rows] += part
        else:
            scores[:, rows].index_add_(0, group.query_ids, part)


def byte_tables(matrix: Tensor) -> Tensor:
    """What each byte of signs adds to their product with a matrix: (8 s, w) to (256 s, w), byte by byte."""
    halves = _nibbles().to(matrix) @ matrix.view(-1, 2, 4, matrix.shape[1])
    return (halves[:, 1, :, None] + halves[:, 0, None, :]).view(-1, matrix.shape[1])


def _column_blocks(width: int, size: int) -> list[slice]:
    """The columns in blocks of whole bytes, whose tables fit the cache."""
    step = min(_MOST_COLUMNS, max(_LEAST_COLUMNS, _TABLES // (256 * size) // 8 * 8))
    return [slice(first, min(first + step, width)) for first in range(0, width, step)]


def _tables(group: QueryGroup, query: int, matrix: Tensor, columns: slice, size: int, workspace: Workspace) -> Tensor:
    """Of some columns of a query's matrix; where vectors end within a byte, the rest of it meets zeros."""

    def make() -> Tensor:
        part = matrix[:, columns]
        missing = columns.stop - columns.start - part.shape[1], 8 * size - len(part)
        return byte_tables(pad(part, (0, missing[0], 0, missing[1])).contiguous())

    return workspace.kept(group, (query << 32) + columns.start, make)


def _places(packed: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """The rows of the tables that each vector sums, int32 (n c s,), and where each vector's begin, (n c,)."""
    count, pairs, size = packed.shape
    vectors = count * pairs
    # Many vectors at a time, so that the tables' own places are added in long runs.
    places = workspace.take("places", -(-vectors // ROWS), ROWS * size, dtype=torch.int32)
    flat = places.view(-1)[: vectors * size]
    flat.copy_(packed.reshape(-1))
    places += _first_rows(size)
    offsets = workspace.take("offsets", vectors, dtype=torch.int32)
    torch.arange(0, vectors * size, size, out=offsets)
    return flat, offsets


def _over_pairs(sums: Tensor, stored: Tensor, workspace: Workspace) -> Tensor:
    """(g, n c) to (g, n), each pair times its scale."""
    scales = workspace.take("scales", *stored.shape)
    scales.copy_(stored)
    totals = workspace.take("over pairs", len(sums), len(stored))
    products = sums.numpy().reshape(len(sums), *stored.shape)
    np.einsum("qnc,nc->qn", products, scales.numpy(), out=totals.numpy())
    return totals


@functools.cache
def _first_rows(size: int) -> Tensor:
    """(64 s,): the first row of each byte's table, vector after vector."""
    return (256 * torch.arange(size, dtype=torch.int32)).repeat(ROWS)


@functools.cache
def _nibbles() -> Tensor:
    """(16, 4): the signs of every half byte."""
    bits = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    return (2 * bits - 1).float()
