"""The pass over the training rows: which rows go through the model together, and what of it goes into a shard."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algebra.devices import on_cpu
from ..algebra.matrices import LowRankMatrices, Matrices, squared_norms
from ..codecs import Codec
from ..curvature.encoding import Encoder
from ..errors import DatasetError, LorifError, RecordingError, UnsupportedModuleError, out_of_memory
from ..recording.recorder import GradientRecorder, Recording
from ..recording.rows import TrainingRows
from ..recording.stored_weights import execution_device
from ..storage.layout import ModuleEntry
from .options import BuildOptions


logger = logging.getLogger(__name__)

_TOGETHER = 1 << 20  # numbers of several layers' gradients that are encoded at once: 4 MiB of float32
_CROSSING = 1 << 26  # bytes of what is encoded that wait on a device to cross to the CPU together


_Rows = list[list[int]]
"""Row numbers, those of one packed row together."""

Take = Callable[[list[int], Tensor, Recording], None]
"""Gets row numbers, int64 (n,) tokens of each, and their recording."""


class RecordingPass:
    """Takes rows through the model, group by group.

    Args:
        rows (`TrainingRows`): the training set.
        options (`BuildOptions`): which rows go together.
        alone (`bool`, *optional*, defaults to `False`): whether every row goes alone all the same.
    """

    def __init__(self, rows: TrainingRows, options: BuildOptions, alone: bool = False):
        self.rows, self.options, self.alone = rows, options, alone
        self._pieces = 1  # into which each group is cut, since larger ones did not fit into memory

    def run(
        self, recorder: GradientRecorder, row_ids: Sequence[int], take: Take | None = None
    ) -> Iterator[tuple[list[int], Tensor, Recording]]:
        """Record rows. Yields (row numbers, int64 (n,) tokens of each, recording), in an order of its own.

        Args:
            recorder (`GradientRecorder`): entered.
            row_ids (`Sequence[int]`): the rows.
            take (`Callable`, *optional*): gets the same before it is yielded, which is then without the gradients:
                they need not be kept while the next rows are recorded. Where memory ends in it, it gets the rows
                again, fewer at once, and has to overwrite what it made of them.

        Raises:
            [`~lorif_hf.errors.DatasetError`], [`~lorif_hf.errors.RecordingError`]: name the rows.
        """
        for group in self._groups(row_ids):
            waiting: list[tuple[_Rows, frozenset[str]]] = [(part, frozenset()) for part in self._cut(group)]
            while waiting:
                part, before = waiting.pop(0)
                counted = set(before)  # modules whose statistics have these rows already
                numbers = [row for together in part for row in together]
                try:
                    recorded = self._record(recorder, numbers, counted, take)
                except UnsupportedModuleError as error:
                    if error.module is None or len(numbers) == 1:
                        raise
                    # By chance: as many rows as tokens, and nobody knows which of them the positions are of.
                    waiting[:0] = [(half, frozenset(counted)) for half in _parts(part, 2)]
                    continue
                if recorded is not None:
                    yield numbers, *recorded
                    del recorded
                    continue
                self._pieces *= 2
                logger.warning("Out of memory with %d rows at once: going on with half as many.", len(numbers))
                waiting.insert(0, (part, frozenset(counted)))
                waiting = [(half, done) for rows, done in waiting for half in _parts(rows, 2)]

    def _groups(self, row_ids: Sequence[int]) -> Iterator[_Rows]:
        """The rows that go through the model together. Of a packed dataset, those of one packed row do."""
        documents = self.rows.documents
        if documents is None or self.alone:
            for group in self._together(row_ids, self.rows.lengths):
                for part in self._alike(group):
                    yield [[row] for row in part]
            return
        packed = documents.by_source(row_ids)
        for group in self._together(list(packed), self.rows.held_lengths):
            yield [packed[source] for source in group]

    def _together(self, row_ids: Sequence[int], lengths: Callable[[Sequence[int]], list[int]]) -> Iterator[list[int]]:
        """Numbers of rows that go together: of a stream, sorted by length only as far as it can be read back."""
        window = self.rows.window if self.options.max_tokens is not None else None
        step = window or max(1, len(row_ids))
        for start in range(0, len(row_ids), step):
            yield from self.options.groups(row_ids[start : start + step], lengths)

    def _alike(self, group: list[int]) -> list[list[int]]:
        """The rows of a group that may go together: those of one length, where padding would change them."""
        if not self.rows.task.padding_counts or self.alone:
            return [group]
        parts: dict[int, list[int]] = {}
        for row, length in zip(group, self.rows.lengths(group), strict=True):
            parts.setdefault(length, []).append(row)
        return list(parts.values())

    def _cut(self, group: _Rows) -> list[_Rows]:
        return [[together] for together in group] if self.alone else _parts(group, self._pieces)

    def _record(
        self, recorder: GradientRecorder, part: list[int], counted: set[str], take: Take | None
    ) -> tuple[Tensor, Recording] | None:
        """Tokens of the rows, and their recording; `None` where it did not fit into memory and a smaller one may."""
        recording = None
        try:
            batch = self.rows.single(part[0]) if self.alone else self.rows.batch(part)
            recording = recorder.record(batch, part, counted)
            if len(recording.losses) != len(part):  # never where rows go alone
                raise packed(len(recording.losses), _named(part))
            num_tokens = self.rows.num_tokens(part, batch)
            if take is None:
                return num_tokens, recording
            take(part, num_tokens, recording)
            return num_tokens, replace(recording, gradients={})
        except (IndexError, MemoryError, RuntimeError) as error:
            if not (out_of_memory(error) and self.options.auto and len(part) > 1):
                typed = typed_error(error, part) if recording is None or out_of_memory(error) else None
                if typed is None:
                    raise
                raise typed from error
        del recording
        # Only now: the error held what was made before it.
        backend = getattr(torch, execution_device(recorder.model).type, None)
        getattr(backend, "empty_cache", lambda: None)()
        return None


def packed(made: int, rows: str) -> DatasetError:
    """The error of a collator that makes another number of examples than there are rows."""
    return DatasetError(
        f"The collator made {made} examples of {rows}: it packs or flattens them (padding_free?). Pass a "
        "data_collator that keeps one example per row."
    )


def typed_error(error: BaseException, rows: Sequence[int]) -> LorifError | None:
    """What a model's raw error means for the rows that it was given; `None`: nobody knows."""
    if isinstance(error, IndexError):
        return DatasetError(
            f"The model cannot take {_named(rows)} ({error}): a row is longer than its positions, or a token is "
            "outside its vocabulary. Truncate the rows; use the model's own tokenizer."
        )
    if out_of_memory(error):
        go_on = (
            "with a smaller batch_size to go on (auto_find_batch_size=True finds the size)"
            if len(rows) > 1
            else "on a device with more memory to go on, or anew with shorter rows or a higher projection_factor"
        )
        return RecordingError(
            f"Out of memory at {_named(rows)}, {len(rows)} at once. The finished shards are kept: build again {go_on}."
        )
    return None


class ShardContents:
    """What is recorded of a range of rows: allocated once, filled in whatever order the rows come.

    Args:
        start, stop (`int`): the rows.
        codec (`Codec`): how gradients are stored.
        entries (`Sequence[ModuleEntry]`): of what.
    """

    def __init__(self, start: int, stop: int, codec: Codec, entries: Sequence[ModuleEntry]):
        self.start, self.codec = start, codec
        count = stop - start
        self.parts = {
            entry.name: {
                part: torch.empty(count, *shape, dtype=dtype)
                for part, (dtype, shape) in codec.layout(entry.d1, entry.d2).items()
            }
            for entry in entries
        }
        self.table = {
            "losses": torch.zeros(count, dtype=torch.float64),
            "num_tokens": torch.zeros(count, dtype=torch.int64),
            "weights": torch.ones(count),
            "self_influence": torch.zeros(count, dtype=torch.float64),
        }
        self.active = dict.fromkeys(self.parts, False)  # whether any row so far had a gradient there

    @torch.inference_mode()
    def put(self, rows: Sequence[int], num_tokens: Tensor, recording: Recording, encoder: Encoder) -> None:
        """Take in one batch. Where memory ends on the way, nothing is counted of it, and it may come again.

        Raises:
            [`~lorif_hf.errors.RecordingError`]: a gradient is too large for the dtype that it is stored in.
        """
        places, encoded = self._places(rows), encoder.encode(recording.gradients)
        waiting: list[tuple[list[str], str, Tensor]] = []
        for names in _alike(encoded):
            parts = self.codec.encode(_cat([encoded[name] for name in names]))
            waiting += [(names, part, tensor) for part, tensor in parts.items()]
            # On the CPU nothing crosses, and what was just made is in the cache.
            if waiting[-1][2].is_cpu or sum(tensor.nbytes for _, _, tensor in waiting) >= _CROSSING:
                self._take(places, waiting, [])
                waiting = []
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, gradients in encoded.items():
            norms = squared_norms(gradients)
            by_device.setdefault(norms.device, {})[name] = norms
        stacked = [torch.stack(list(norms.values())) for norms in by_device.values()]
        summed = self._take(places, waiting, [s.sum(dim=0) for s in stacked] + [s.any(dim=1) for s in stacked])
        for of_device, active in zip(by_device.values(), summed[len(stacked) :], strict=True):
            for name, has_gradient in zip(of_device, active.tolist(), strict=True):
                self.active[name] |= has_gradient
        self.table["self_influence"][places] += torch.stack(summed[: len(stacked)]).double().sum(dim=0)
        self.table["losses"][places] = recording.losses
        self.table["num_tokens"][places] = num_tokens
        if recording.weights is not None:
            self.table["weights"][places] = recording.weights

    def _take(
        self, places: slice | Tensor, waiting: Sequence[tuple[list[str], str, Tensor]], others: Sequence[Tensor]
    ) -> list[Tensor]:
        """Bring encoded parts to the CPU, each of several layers one after the other, and put them in their places.
        Returns the other tensors, which come with them."""
        brought = on_cpu([*(tensor for _, _, tensor in waiting), *others])
        for (names, part, _), tensor in zip(waiting, brought[: len(waiting)], strict=True):
            finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor.float().sum()))
            for name, piece in zip(names, tensor.chunk(len(names)), strict=True):
                if not finite and not bool(torch.isfinite(piece).all()):
                    raise RecordingError(
                        f"A gradient of module '{name}' is too large for {str(piece.dtype)[6:]}: build with "
                        "dtype='bfloat16'."
                    )
                self.parts[name][part][places] = piece
        return brought[len(waiting) :]

    def _places(self, rows: Sequence[int]) -> slice | Tensor:
        """Where rows stand in the shard; neighbours are copied in one run."""
        first = rows[0] - self.start
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return slice(first, first + len(rows))
        return torch.tensor(rows) - self.start


def _alike(encoded: Mapping[str, Matrices]) -> list[list[str]]:
    """Names of layers whose gradients have one shape, as many as fit the cache: each call of an encoder has its cost,
    so they are encoded together."""
    groups: dict[tuple[Any, ...], list[list[str]]] = {}
    for name, gradients in encoded.items():
        count, d1, d2 = gradients.shape
        width = gradients.left.shape[2] if isinstance(gradients, LowRankMatrices) else None
        size = count * (d1 * d2 if width is None else width * (d1 + d2))
        device = gradients.device if isinstance(gradients, Tensor) else gradients.left.device
        alike = groups.setdefault((d1, d2, width, device), [[]])
        if len(alike[-1]) * size >= _TOGETHER:
            alike.append([])
        alike[-1].append(name)
    return [names for alike in groups.values() for names in alike]


def _cat(batches: list[Any]) -> Matrices:
    if len(batches) == 1:
        return batches[0]
    return LowRankMatrices.cat(batches) if isinstance(batches[0], LowRankMatrices) else torch.cat(batches)


def _parts(group: _Rows, count: int) -> list[_Rows]:
    """A group in about so many parts. What goes together is only cut where nothing else is left to cut."""
    if len(group) > 1:
        size = -(-len(group) // count)
        parts = [group[start : start + size] for start in range(0, len(group), size)]
        rest = -(-count // len(group))
        return [piece for part in parts for piece in _parts(part, rest)] if size == 1 and rest > 1 else parts
    size = -(-len(group[0]) // count)
    return [[group[0][start : start + size]] for start in range(0, len(group[0]), size)]


def _named(rows: Sequence[int]) -> str:
    """How an error names rows."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    if list(rows) == list(range(rows[0], rows[-1] + 1)):
        return f"rows {rows[0]} to {rows[-1]}"
    return f"rows {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
