"""Scoring every stored example on a device, a GPU above all.

What is stored crosses as it is stored (packed bits, not the numbers that they stand for), block by block and layer by
layer, and is unpacked there. The queries are brought there once. A device is waited for once a shard, and once more
for the best rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from ..algebra.devices import on_cpu
from ..algebra.distribution import RunningDistribution
from ..algebra.scoring import ROWS, QueryGroup
from ..codecs import Parts
from ..codecs.base import filled_up
from ..errors import IndexCorruptedError, QueryError, out_of_memory
from ..progress import progress
from ..storage.layout import ModuleEntry
from ..storage.shards import ShardTask
from .ranked import RankedScores
from .scan import Scan


_BLOCK_NUMBERS = 1 << 26  # numbers of a block, as far as they are known before: 256 MiB of float32


def usable_device(device: str | torch.device | None) -> torch.device | None:
    """Where queries are scored; `None`: on the CPU, in threads.

    Raises:
        [`~lorif_hf.errors.QueryError`]: there is no such device here.
    """
    if device is None:
        return None
    if not isinstance(device, (str, torch.device)):
        raise QueryError(f"device must be a device like 'cuda' or 'cuda:1', or None for the CPU, got {device!r}.")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.zeros(1, device=chosen)
    except Exception as error:  # of whatever library the device is
        reason = str(error).strip().partition("\n")[0][:200]
        raise QueryError(
            f"device={str(device)!r} cannot be used here ({reason}). Name one that torch has here, like 'cuda' or "
            "'cuda:1', or leave device= out to score on the CPU."
        ) from error
    return None if chosen.type == "cpu" else chosen


class DeviceScan:
    """What is scored against what, on a device. Products are in float32, unless torch was told to take TF32.

    Args:
        scan (`Scan`): what is scored.
        device (`torch.device`): where.

    Raises:
        [`~lorif_hf.errors.QueryError`]: the queries, or the smallest block, do not fit there.
    """

    def __init__(self, scan: Scan, device: torch.device):
        self.scan, self.device = scan, device
        self._size: int | None = None  # rows of a block, once the device had too little memory for more
        try:
            self._groups = {name: [self._placed(group) for group in groups] for name, groups in scan.groups.items()}
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise self._full() from error

    def best(self, k: int, largest: bool = True, opponents: int = 0) -> RankedScores:
        """The k best rows of each query, and how the scores of all are spread; ties go to the lower row. Arguments as
        of [`~lorif_hf.querying.scan.best_scores`]."""
        queries = self.scan.queries
        spread = RunningDistribution(queries, self.device)
        sides = [(largest, k)] + ([(not largest, opponents)] if opponents else [])
        ends = [(torch.empty(queries, 0, device=self.device), self._no_rows(queries)) for _ in sides]
        for task, parts, weights in self._shards():
            finite = []
            for block, scores in self._blocks(task, parts, weights, by_entry=False):
                finite.append(torch.isfinite(scores.sum()))
                spread.update(scores)
                row_ids = self._row_ids(task, block).expand(len(scores), -1)
                for end, (side, most) in enumerate(sides):
                    # Rows come in order, so that a stable sort keeps the lower one first.
                    values, rows = torch.cat([ends[end][0], scores], dim=1), torch.cat([ends[end][1], row_ids], dim=1)
                    values, order = values.sort(dim=1, descending=side, stable=True)
                    ends[end] = values[:, :most], rows.gather(1, order[:, :most])
            if finite and not bool(torch.stack(finite).all()):
                raise self._not_finite(task, parts)
        kept = on_cpu([*(tensor for end in ends for tensor in end), *spread.tensors()])
        worst = (kept[2], kept[3]) if opponents else (None, None)
        return RankedScores(kept[0], kept[1], spread.spreads(kept[2 * len(ends) :]), *worst)

    def every(self, into: Tensor) -> None:
        """Fill in all scores, (Q, N) or (entries, Q, N), of the CPU. Nats per unit of example weight."""
        for task, parts, weights in self._shards():
            for block, scores in self._blocks(task, parts, weights, by_entry=into.dim() == 3):
                filled = into[..., task.position + block.start : task.position + block.stop]
                filled.copy_(scores)
                if not bool(torch.isfinite(filled.sum())):
                    raise self._not_finite(task, parts)

    def _shards(self) -> Iterator[tuple[ShardTask, Mapping[str, Parts], Tensor | None]]:
        scan = self.scan
        with progress(scan.count, "Scoring", "examples") as bar:
            for task, parts in scan.reader.stream(scan.entries, scan.reader.tasks(scan.rows)):
                yield task, parts, scan.reader.weights(task.shard, task.chosen) if scan.weighted else None
                bar.update(task.count)

    def _blocks(
        self, task: ShardTask, parts: Mapping[str, Parts], weights: Tensor | None, by_entry: bool
    ) -> Iterator[tuple[slice, Tensor]]:
        """Runs of a shard's rows and their scores, (Q, n) or (entries, Q, n), on the device; smaller ones from where
        its memory does not hold more."""
        start = 0
        while start < task.count:
            size = self._size or self._fitting(by_entry)
            block = slice(start, min(start + size, task.count))
            scores: Tensor | None = None
            try:
                scores = self._scores(parts, block, size, by_entry)
                if weights is not None:
                    scores *= weights[block].to(self.device)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise self._full() from error
            if scores is None:
                self._size = size // 2
                self._make_room()
                continue
            yield block, scores
            start = block.stop

    def _scores(self, parts: Mapping[str, Parts], block: slice, size: int, by_entry: bool) -> Tensor:
        entries, queries = self.scan.entries, self.scan.queries
        shape = (len(entries), queries) if by_entry else (queries,)
        scores = torch.zeros(*shape, size, device=self.device)
        for number, entry in enumerate(entries):
            self._add(scores[number] if by_entry else scores, entry, parts[entry.name], block)
        return scores[..., : block.stop - block.start]

    def _add(self, scores: Tensor, entry: ModuleEntry, parts: Parts, block: slice) -> None:
        """Add one layer's inner products to the scores (Q, n); zeros fill the block up to n, so that equal examples
        get equal scores wherever they stand."""
        stored = {name: _filled_up(part[block].to(self.device), scores.shape[1]) for name, part in parts.items()}
        left, right = self.scan.codec.factors(stored, entry.d1, entry.d2)
        left, right = left.float(), None if right is None else right.float()
        for group in self._groups[entry.name]:
            products = _products(group, left, right)
            if len(group.query_ids) == self.scan.queries:
                scores += products
            else:
                scores.index_add_(0, group.query_ids, products)

    def _fitting(self, by_entry: bool) -> int:
        """Rows of a block: of all blocks, as many."""
        longest = max(task.count for task in self.scan.reader.tasks(self.scan.rows))
        return max(ROWS, min(filled_up(longest), _BLOCK_NUMBERS // self._numbers(by_entry) // ROWS * ROWS))

    def _numbers(self, by_entry: bool) -> int:
        """Numbers of an example that are held at the same time, of the widest layer."""
        pairs, queries = self.scan.codec.pairs, self.scan.queries
        most = 1
        for entry in self.scan.entries:
            d1, d2 = entry.d1, entry.d2
            stored = 2 * d1 * d2 if pairs is None else 3 * pairs * (d1 + d2)
            for group in self._groups[entry.name]:
                count, rank = len(group.query_ids), group.left.shape[1]
                if pairs is None:
                    images = 0
                elif group.right is not None:
                    images = 3 * count * rank * pairs
                else:
                    images = d1 * d2 if _rebuilt(count, pairs) else 2 * count * pairs * d2
                most = max(most, stored + images + count)
        return most + 2 * queries * (len(self.scan.entries) if by_entry else 1)

    def _no_rows(self, queries: int) -> Tensor:
        return torch.empty(queries, 0, dtype=torch.int64, device=self.device)

    def _row_ids(self, task: ShardTask, block: slice) -> Tensor:
        if task.chosen is None:
            return torch.arange(task.shard.start + block.start, task.shard.start + block.stop, device=self.device)
        return task.chosen[block].to(self.device) + task.shard.start

    def _placed(self, group: QueryGroup) -> QueryGroup:
        right = None if group.right is None else group.right.to(self.device)
        return QueryGroup(group.query_ids.to(self.device), group.left.to(self.device), right)

    def _make_room(self) -> None:
        """Give back what torch keeps of the device's memory."""
        with suppress(AttributeError, RuntimeError):
            torch.get_device_module(self.device).empty_cache()

    def _full(self) -> QueryError:
        return QueryError(
            f"Scoring {self.scan.queries} queries on {self.device} runs out of its memory, one example at a time too: "
            "ask for fewer queries at once, for fewer layers (modules=), or leave device= out to score on the CPU."
        )

    def _not_finite(self, task: ShardTask, parts: Mapping[str, Parts]) -> IndexCorruptedError:
        for entry in self.scan.entries:
            for row in range(task.count):
                alone = torch.zeros(self.scan.queries, 1, device=self.device)
                self._add(alone, entry, parts[entry.name], slice(row, row + 1))
                if not bool(torch.isfinite(alone.sum())):
                    return IndexCorruptedError(
                        task.shard.file, f"the factors of '{entry.name}' are not all finite numbers"
                    )
        return IndexCorruptedError(task.shard.file, "its scores are beyond the range of float32")


def _filled_up(part: Tensor, rows: int) -> Tensor:
    """A part of an example a row, with zeros as further rows."""
    if len(part) == rows:
        return part
    filled = part.new_zeros(rows, *part.shape[1:])
    filled[: len(part)] = part
    return filled


def _products(group: QueryGroup, left: Tensor, right: Tensor | None) -> Tensor:
    """Inner products (g, n) of queries with examples (n, d1, c) and (n, d2, c), or (n, d1, d2)."""
    if right is None:
        return group.matrices().flatten(1) @ left.flatten(1).T
    count, d1, pairs = left.shape
    queries = len(group.left)
    if group.right is None and _rebuilt(queries, pairs):
        return group.left.flatten(1) @ (left @ right.mT).flatten(1).T
    rows = left.permute(1, 0, 2).reshape(d1, count * pairs)
    columns = right.permute(1, 0, 2).reshape(right.shape[1], count * pairs)
    if group.right is None:
        images = group.left.mT.reshape(-1, d1) @ rows  # (g d2, n c)
        products = images.view(queries, -1, count * pairs) * columns
    else:
        images, others = group.left.flatten(0, 1) @ rows, group.right.flatten(0, 1) @ columns
        products = (images * others).view(queries, -1, count * pairs)
    return products.sum(dim=1).view(queries, count, pairs).sum(dim=2)


def _rebuilt(queries: int, pairs: int) -> bool:
    """Whether rebuilding the gradients, c D operations an example and then D a query, is cheaper than c D a query."""
    return queries * pairs > queries + pairs
