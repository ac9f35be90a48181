"""Scoring every stored example: blocks of shards, over several threads.

Memory does not depend on the number of examples. With Q queries it is, in bytes, the sum of
- the queries: 4 Q d1 d2 for each layer, or 4 Q k (d1 + d2) where they have rank k;
- for each thread, three buffers of 4 MiB (of 64 examples, where these take more) and five, for scores, of 4 Q for each
  of 1,000 rows or of 4 MiB; at one bit a number, for at most eight queries, also 64 MiB for tables made of them;
- for each thread, 1 KiB for each query and 32 MiB, for how the scores are spread;
- two shards of the scored layers: pages of mapped files, or memory where they are streamed or rows are selected.
"""

import math
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..algebra.distribution import RunningDistribution
from ..algebra.scoring import BLOCK_NUMBERS, QueryGroup, Workspace
from ..codecs import Codec, Parts
from ..errors import IndexCorruptedError, QueryError
from ..progress import progress
from ..storage.layout import FactorShard, ModuleEntry
from ..storage.shards import ShardReader, ShardTask
from .executor import scoring_pool, worker_count
from .ranked import RankedScores, RunningRanking


_LEAST_ROWS = 1000  # of a block: a call for fewer costs more than it scores

Groups = Mapping[str, Sequence[QueryGroup]]
"""By stored gradient: the preconditioned queries."""


@dataclass
class Scan:
    """What is scored against what.

    Args:
        queries (`int`): Q.
        groups (`Groups`): the preconditioned queries of each stored gradient that is scored.
        reader (`ShardReader`): of the index.
        entries (`Sequence[ModuleEntry]`): the stored gradients to score.
        codec (`Codec`): how they are stored.
        rows (`Tensor`, *optional*): row numbers to score, ascending; by default all.
        weighted (`bool`): multiply by the examples' weights, which the factor files hold.
    """

    queries: int
    groups: Groups
    reader: ShardReader
    entries: Sequence[ModuleEntry]
    codec: Codec
    rows: Tensor | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        self._local = threading.local()

    @property
    def count(self) -> int:
        """Rows to score."""
        return sum(shard.rows for shard in self.reader.shards) if self.rows is None else len(self.rows)

    @property
    def workspace(self) -> Workspace:
        """The buffers of the calling thread."""
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace()
        return self._local.workspace

    def scores(self, shard: FactorShard, parts: Mapping[str, Parts], rows: slice, into: Tensor) -> None:
        """Scores of a run of rows, summed over the stored gradients: (Q, n); or gradient by gradient: (entries, Q, n).

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`]: a stored factor is not finite.
        """
        into.zero_()
        for number, entry in enumerate(self.entries):
            self._add(into[number] if into.dim() == 3 else into, entry, parts, rows)
        if bool(torch.isfinite(into.sum())):
            return
        for entry in self.entries:
            alone = torch.zeros(self.queries, into.shape[-1])
            self._add(alone, entry, parts, rows)
            if not bool(torch.isfinite(alone.sum())):
                raise IndexCorruptedError(shard.file, f"the factors of '{entry.name}' are not all finite numbers")
        raise IndexCorruptedError(shard.file, "its scores are beyond the range of float32")

    def _add(self, scores: Tensor, entry: ModuleEntry, parts: Mapping[str, Parts], rows: slice) -> None:
        groups = self.groups[entry.name]
        self.codec.add_scores(
            scores, groups, parts[entry.name], entry.d1, entry.d2, self.workspace, rows.start, self.count
        )

    def run(self, work: Callable[[ShardTask, slice, Tensor], None], by_entry: bool = False) -> None:
        """Score every row: `work(task, rows, scores)` is called in several threads, for a run of a shard's rows each.

        `rows` counts the rows that are read of the shard; `scores` are theirs, (Q, n), or with `by_entry` those of
        each stored gradient apart, (entries, Q, n); valid until `work` returns.
        """
        shape = (len(self.entries), self.queries) if by_entry else (self.queries,)

        def score(task: ShardTask, rows: slice, parts: Mapping[str, Parts], weights: Tensor | None) -> None:
            scores = self.workspace.take("scores", *shape, rows.stop - rows.start)
            self.scores(task.shard, parts, rows, scores)
            if weights is not None:
                scores *= weights[rows]
            work(task, rows, scores)

        pool = scoring_pool()
        with progress(self.count, "Scoring", "examples") as bar:
            for task, parts in self.reader.stream(self.entries, self.reader.tasks(self.rows)):
                weights = self.reader.weights(task.shard, task.chosen) if self.weighted else None
                futures = [pool.submit(score, task, rows, parts, weights) for rows in self._blocks(task.count)]
                try:
                    for future in futures:
                        future.result()
                finally:  # after an error too, nothing of this query runs on
                    for future in futures:
                        future.cancel()
                    wait(futures)
                del parts, futures
                bar.update(task.count)

    def _blocks(self, count: int) -> list[slice]:
        """A shard's rows in runs: each thread has one, as long as its scores fit a buffer."""
        step = max(_LEAST_ROWS, min(-(-count // worker_count()), BLOCK_NUMBERS // max(1, self.queries)))
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def every_score(scan: Scan, into: Tensor) -> None:
    """Fill in all scores: (Q, N), or (entries, Q, N). Nats per unit of example weight."""

    def work(task: ShardTask, rows: slice, scores: Tensor) -> None:
        into[..., task.position + rows.start : task.position + rows.stop] = scores

    scan.run(work, by_entry=into.dim() == 3)


def best_scores(scan: Scan, k: int, largest: bool = True, opponents: int = 0) -> RankedScores:
    """The k best rows of each query, and how the scores of all are spread; ties go to the lower row.

    Args:
        scan (`Scan`): what is scored.
        k (`int`): how many.
        largest (`bool`, *optional*, defaults to `True`): proponents, else opponents.
        opponents (`int`, *optional*, defaults to 0): so many from the other end beside them.
    """
    ranking, lock = RunningRanking(scan.queries, k, largest, opponents), threading.Lock()
    spreads: dict[int, RunningDistribution] = {}

    def work(task: ShardTask, rows: slice, scores: Tensor) -> None:
        thread = threading.get_ident()  # each has its own
        if thread not in spreads:
            spreads[thread] = RunningDistribution(scan.queries)
        spreads[thread].update(scores)
        reached = [end for end in ranking.ends if end.is_reached(scores)]
        if not reached:
            return
        row_ids = torch.arange(rows.start, rows.stop) if task.chosen is None else task.chosen[rows]
        with lock:
            for end in reached:
                end.update(scores, row_ids + task.shard.start)

    scan.run(work)
    for spread in spreads.values():
        ranking.spread.merge(spread)
    return ranking.ranked()


def allocate(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor, in a temporary file where it would take over half of the free memory."""
    size = math.prod(shape)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 1 << 32  # a system that does not tell: take 4 GiB
    if size * 4 <= free // 2:
        return torch.empty(shape)
    try:
        with tempfile.TemporaryFile() as file:  # the map keeps the file alive until the tensor is gone
            if hasattr(os, "posix_fallocate"):  # writing to a map that the disk has no room for ends the process
                os.posix_fallocate(file.fileno(), 0, size * 4)
            return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise QueryError(
            f"No room for scores of shape {shape} ({error}): ask for fewer queries, or attribute()."
        ) from None
