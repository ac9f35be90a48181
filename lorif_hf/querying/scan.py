"""Scoring every stored example, or finding the best without scoring all: blocks of shards, over several threads.

Memory does not depend on the number of examples. With Q queries it is, in bytes, the sum of
- the queries: 4 Q d1 d2 for each layer, or 4 Q k (d1 + d2) where they have rank k;
- for each thread, three buffers of 4 MiB (of 64 examples, where these take more) and five, for scores, of 4 Q for each
  of 1,000 rows or of 4 MiB;
- two shards of the scored layers: pages of mapped files, or memory where they are streamed or rows are selected;
- what the manifest says of each shard, some kilobytes.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..algebra.ranking import RunningTopK
from ..algebra.scoring import BLOCK_NUMBERS, QueryGroup, Workspace
from ..algebra.thin_queries import gradient_bounds, truncate
from ..config import InfluenceConfig
from ..errors import IndexCorruptedError
from ..progress import progress
from ..storage.layout import MANIFEST, NORM_BLOCK, FactorShard, ModuleEntry
from ..storage.shards import Parts, ShardReader, ShardTask


_ALIKE = 0.8  # blocks whose limits differ by less are ruled out together or not at all
_MOST_THREADS = 8  # beyond, they wait for Python's lock more than they score; torch's own threads take the rest

Groups = Mapping[str, Sequence[QueryGroup]]
"""By stored gradient: the preconditioned queries."""


@dataclass(frozen=True)
class Block:
    """Rows of a shard that are scored together: they share one bound of their norms.

    Args:
        position (`int`): selected rows before it.
        rows (`slice`): where they are in what was read of the shard.
        number (`int`): which of the shard's blocks of `NORM_BLOCK` rows; of several, the first.
        limit (`Tensor`, *optional*): (Q,) float64, how large no score of these rows is, of either sign.
    """

    position: int
    rows: slice
    number: int
    limit: Tensor | None = None

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass
class Scan:
    """What is scored against what.

    Args:
        queries (`int`): Q.
        groups (`Groups`): the preconditioned queries of each stored gradient that is scored.
        reader (`ShardReader`): of the index.
        entries (`Sequence[ModuleEntry]`): the stored gradients to score.
        stored (`Sequence[ModuleEntry]`): all that are stored, in the order of the manifest's norms.
        config (`InfluenceConfig`): the index's.
        rows (`Tensor`, *optional*): row numbers to score, ascending; by default all.
        weighted (`bool`): multiply by the examples' weights, where they have any.

    Attributes:
        examined (`dict[str, int]`): of the last search, rows that were "read", "truncated" (scored at low rank) and
            "scored" (in full).
    """

    queries: int
    groups: Groups
    reader: ShardReader
    entries: Sequence[ModuleEntry]
    stored: Sequence[ModuleEntry]
    config: InfluenceConfig
    rows: Tensor | None = None
    weighted: bool = True
    examined: dict[str, int] = field(default_factory=lambda: {"read": 0, "truncated": 0, "scored": 0})

    def __post_init__(self) -> None:
        self.codec = self.config.codec()
        self._local = threading.local()

    @property
    def count(self) -> int:
        """Rows to score."""
        return sum(shard.rows for shard in self.reader.shards) if self.rows is None else len(self.rows)

    def blocks(self, task: ShardTask) -> list[Block]:
        """A shard's blocks, of the rows that are read of it."""
        if task.chosen is None:
            edges = list(range(0, task.shard.rows, NORM_BLOCK))
            numbers = list(range(len(edges)))
        else:
            of_row = task.chosen // NORM_BLOCK
            found, sizes = of_row.unique_consecutive(return_counts=True)
            edges, numbers = [0, *sizes.cumsum(0)[:-1].tolist()], found.tolist()
        total = task.shard.rows if task.chosen is None else len(task.chosen)
        stops = [*edges[1:], total]
        return [
            Block(task.position + start, slice(start, stop), number)
            for start, stop, number in zip(edges, stops, numbers, strict=True)
        ]

    def joined(self, blocks: Sequence[Block], calls: int = 1) -> list[Block]:
        """Neighbours put together, as long as each thread has so many calls and the scores fit a buffer: a call for
        few rows costs more than it does."""
        most = min(sum(map(len, blocks)) // (calls * _workers()), BLOCK_NUMBERS // max(1, self.queries))
        found: list[Block] = []
        for block in blocks:
            if found and found[-1].rows.stop == block.rows.start and len(found[-1]) + len(block) <= most:
                last = found[-1]
                limit = None if last.limit is None or block.limit is None else torch.maximum(last.limit, block.limit)
                found[-1] = replace(last, rows=slice(last.rows.start, block.rows.stop), limit=limit)
            else:
                found.append(block)
        return found

    @property
    def workspace(self) -> Workspace:
        """The buffers of the calling thread."""
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace()
        return self._local.workspace

    def scores(self, shard: FactorShard, parts: Mapping[str, Parts], rows: slice | Tensor, into: Tensor) -> None:
        """Scores of some rows, summed over the stored gradients: (Q, n); or gradient by gradient: (entries, Q, n).

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`]: a stored factor is not finite.
        """
        into.zero_()
        for number, entry in enumerate(self.entries):
            target = into[number] if into.dim() == 3 else into
            self._add(target, entry, self.groups[entry.name], parts, rows)
        if bool(torch.isfinite(into.sum())):
            return
        for entry in self.entries:
            alone = torch.zeros(self.queries, into.shape[-1])
            self._add(alone, entry, self.groups[entry.name], parts, rows)
            if not bool(torch.isfinite(alone.sum())):
                raise IndexCorruptedError(shard.file, f"the factors of '{entry.name}' are not all finite numbers")
        raise IndexCorruptedError(shard.file, "its scores are beyond the range of float32")

    def truncated_scores(
        self, cut: Groups, parts: Mapping[str, Parts], rows: slice, bounds: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Scores (Q, n) with truncated queries, and how far each may be from the full one, (Q, n)."""
        count = rows.stop - rows.start
        scores, room = self.workspace.take("truncated", self.queries, count).zero_(), torch.zeros(self.queries, count)
        sizes = torch.empty(count)
        for entry in self.entries:
            self._add(scores, entry, cut[entry.name], parts, rows, sizes)
            room.addr_(bounds[entry.name], sizes)
        return scores, room

    def _add(
        self,
        scores: Tensor,
        entry: ModuleEntry,
        groups: Sequence[QueryGroup],
        parts: Mapping[str, Parts],
        rows: slice | Tensor,
        sizes: Tensor | None = None,
    ) -> None:
        some, first = parts[entry.name], 0
        if isinstance(rows, slice):
            first = rows.start
        else:
            some = {name: part[rows] for name, part in some.items()}
        self.codec.add_scores(scores, groups, some, entry.d1, entry.d2, self.workspace, sizes, first)

    def weights(self, task: ShardTask) -> Tensor | None:
        """What the rows that are read count for, (n,); `None`: one each."""
        weighted = self.weighted and self.config.output == "margin"
        return self.reader.weights(task.shard, task.chosen) if weighted else None

    def run(
        self,
        tasks: Iterator[ShardTask],
        blocks: Callable[[ShardTask], list[Block]],
        work: Callable[..., None],
        skipped: Callable[[], int],
    ) -> None:
        """Call `work(task, block, parts, weights)` for the blocks of each shard, in threads of our own.

        Blocks are small, and a product of small matrices gains nothing from torch's threads, which must meet at the
        end of each; ours only meet at the end of a shard.
        """
        with progress(self.count, "Scoring", "examples") as bar, _threads() as pool:
            done = 0
            for task, parts in self.reader.stream(self.entries, tasks):
                weights = self.weights(task)
                some = blocks(task)
                for future in [pool.submit(work, task, block, parts, weights) for block in some]:
                    future.result()
                del parts
                done += sum(map(len, some))
                bar.update(done + skipped() - bar.n)
            bar.update(self.count - bar.n)


def every_score(scan: Scan, into: Tensor) -> None:
    """Fill in all scores: (Q, N), or (entries, Q, N). Nats per unit of example weight."""

    def work(task: ShardTask, block: Block, parts: Mapping[str, Parts], weights: Tensor | None) -> None:
        scores = scan.workspace.take("scores", *into.shape[:-1], len(block))
        scan.scores(task.shard, parts, block.rows, scores)
        if weights is not None:
            scores *= weights[block.rows]
        into[..., block.position : block.position + len(block)] = scores

    scan.run(iter(scan.reader.tasks(scan.rows)), lambda task: scan.joined(scan.blocks(task)), work, lambda: 0)


def best_scores(scan: Scan, k: int, largest: bool = True, rank: int | None = None) -> RunningTopK:
    """The k best rows of each query, the same as from all scores; rows are counted in the selection.

    A block whose norms are too small for any of its rows to be among the best so far is neither scored nor, where that
    holds for a whole shard, read. With `rank`, the other blocks are scored with the queries cut to that rank first,
    and in full only where the bound on what was cut leaves room.

    Args:
        scan (`Scan`): what is scored.
        k (`int`): how many.
        largest (`bool`, *optional*, defaults to `True`): proponents, else opponents.
        rank (`int`, *optional*): rank of the first look.
    """
    search = _Search(scan, RunningTopK(scan.queries, k, largest), rank)
    scan.run(search.tasks(), search.blocks, search.work, lambda: search.skipped)
    return search.best


class _Search:
    def __init__(self, scan: Scan, best: RunningTopK, rank: int | None):
        self.scan, self.best = scan, best
        self.sign = 1.0 if best.largest else -1.0
        self.skipped = 0
        self._lock = threading.Lock()
        pairs, count = scan.codec.pairs, scan.queries
        positions = {entry.name: number for number, entry in enumerate(scan.stored)}
        self._columns = torch.tensor([positions[entry.name] for entry in scan.entries])
        self._reach = torch.stack([gradient_bounds(scan.groups[one.name], pairs, count) for one in scan.entries])
        self._scale = self._reach.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        self.cut: dict[str, list[QueryGroup]] = {}
        self.bounds: dict[str, Tensor] = {}
        for entry in scan.entries if rank is not None else ():
            assert rank is not None
            self.cut[entry.name], bounds = truncate(scan.groups[entry.name], rank, count)
            self.bounds[entry.name] = bounds.float()
        scan.examined.update(read=0, truncated=0, scored=0)

    def tasks(self) -> Iterator[ShardTask]:
        """The shards in the order of what they can hold, without those that cannot hold any of the best."""

        def promise(task: ShardTask) -> float:
            limits = self._limits(task.shard, self.scan.blocks(task))
            return torch.inf if limits is None else float((limits / self._scale).max())

        for task in sorted(self.scan.reader.tasks(self.scan.rows), key=promise, reverse=True):
            rows = task.shard.rows if task.chosen is None else len(task.chosen)
            wanted = [block for block in self.blocks(task) if not self._hopeless(block)]
            if wanted and (task.chosen is None or sum(map(len, wanted)) == rows):
                # Tensors are read whole, for the sake of their hash; work() passes over the blocks without hope.
                self._count("read", rows)
                yield task
                continue
            self.skipped += rows - sum(map(len, wanted))
            if wanted:
                assert task.chosen is not None
                chosen = torch.cat([task.chosen[block.rows] for block in wanted]).sort().values
                self._count("read", len(chosen))
                yield ShardTask(task.position, task.shard, chosen)

    def blocks(self, task: ShardTask) -> list[Block]:
        """A shard's blocks in the order of what they can hold: of the query that they can hold most for.

        Where they can all hold about as much, no order helps, and neighbours go together.
        """
        blocks = self.scan.blocks(task)
        limits = self._limits(task.shard, blocks)
        calls = 2 if self.cut else 1  # what the first found, a cut query is compared with in the second
        if limits is None:
            return self.scan.joined(blocks, calls)
        limited = [replace(block, limit=limit) for block, limit in zip(blocks, limits, strict=True)]
        most = (limits / self._scale).amax(dim=1)
        if float(most.min()) > _ALIKE * float(most.max()):
            return self.scan.joined(limited, calls)
        return [limited[number] for number in most.argsort(descending=True, stable=True).tolist()]

    def work(self, task: ShardTask, block: Block, parts: Mapping[str, Parts], weights: Tensor | None) -> None:
        """Score what is worth it of a block, and keep what is among the best."""
        if self._hopeless(block):
            return
        scan, rows = self.scan, block.rows
        numbers = torch.arange(rows.start, rows.stop) if task.chosen is None else task.chosen[rows]
        if weights is not None:
            weights = weights[rows]
        chosen: slice | Tensor = rows
        threshold = self.best.threshold
        if self.cut and threshold is not None:
            scores, room = scan.truncated_scores(self.cut, parts, rows, self.bounds)
            highest = self.sign * scores + room
            if weights is not None:
                highest *= weights
            # A number that is none is not below anything: its row is scored in full, and found out.
            left = (~(highest < threshold.unsqueeze(1))).any(dim=0).nonzero()[:, 0]
            self._count("truncated", len(block))
            if not len(left):
                return
            if 2 * len(left) < len(block):
                chosen, numbers = left + rows.start, numbers[left]
                weights = None if weights is None else weights[left]
        found = scan.workspace.take("scores", scan.queries, len(numbers))
        scan.scores(task.shard, parts, chosen, found)
        if weights is not None:
            found *= weights
        self._count("scored", len(numbers))
        if threshold is None or bool((self.sign * found >= threshold.unsqueeze(1)).any()):
            with self._lock:
                self.best.update(found, numbers + task.shard.start)

    def _limits(self, shard: FactorShard, blocks: Sequence[Block]) -> Tensor | None:
        """(blocks, Q) what no score of each block is above; `None` where the norms are not known."""
        if not shard.block_norms:
            return None
        norms = [shard.block_norms[block.number] for block in blocks]
        if len(norms[0]) != len(self.scan.stored):
            raise IndexCorruptedError(MANIFEST, f"{shard.file} has block_norms of {len(norms[0])} gradients")
        return torch.tensor(norms, dtype=torch.float64)[:, self._columns] @ self._reach

    def _hopeless(self, block: Block) -> bool:
        """Whether no row of a block can be among the best, of any query."""
        threshold = self.best.threshold
        return threshold is not None and block.limit is not None and bool((block.limit < threshold).all())

    def _count(self, what: str, rows: int) -> None:
        with self._lock:
            self.scan.examined[what] += rows


def _workers() -> int:
    return min(torch.get_num_threads(), _MOST_THREADS)


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """A pool with a share of torch's threads for each of ours."""
    total, workers = torch.get_num_threads(), _workers()
    share = max(1, total // workers)
    try:
        with ThreadPoolExecutor(workers, "lorif-score", torch.set_num_threads, (share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(total)  # a thread's setting is in part that of all
