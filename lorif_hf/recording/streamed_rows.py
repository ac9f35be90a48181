"""The rows of a stream by number: read forward, and from its start again for whoever goes back."""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..checks import whole_number
from ..errors import DatasetError
from .fingerprint import by_value
from .random_state import random_state_kept
from .row_access import TABLES, must_pass


_HELD = 256  # first rows that stay in memory: what is looked at before a pass is looked at in these
RECENT = 256  # rows asked for last, that can be asked for again without going back
_COMPARED = 32  # first rows that must be the same in two readings
_FEW = 8  # rows, of which two readings could have one order by chance: they are read more often

_AGAIN = "An index reads its rows several times. "


class StreamedRows:
    """The first rows of a stream, numbered as they come, with `len` and indexing.

    Whoever asks for rows in ascending order reads the stream once, and going back reads it from its start. A build
    does that four times (the fingerprint; the sample of the first pass, where the config whitens; the recording; the
    texts), and once or twice more where rows are packed. Before it the first rows alone are read, twice or more, to
    see that they are the same each time. The first 256 rows and the 256 that were asked for last stay in memory, and
    8 bytes of every row, by which one that changes from one reading to the next is found.

    A stream that has `set_epoch` is read in the order of epoch 0, which is the one that a training sees first; a
    `datasets` stream that is shuffled with a seed has the same order in the same epoch. Its `epoch` is what it was
    after each reading, where it tells which that was.

    Args:
        stream: an iterable that begins anew each time.
        count (`int`): how many of its rows are wanted.
        at_most (`bool`, *optional*, defaults to `False`): whether the stream may end before; `len` is then right once
            its end was met.
        read (`Callable`, *optional*): what begins a reading of the stream; by default `iter`.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: the stream has fewer rows, cannot be read twice, or has another order or
        other values each time.
    """

    def __init__(
        self,
        stream: Any,
        count: int,
        at_most: bool = False,
        read: Callable[[Any], Iterable[Any]] | None = None,
    ):
        self.stream, self.count, self.at_most = stream, count, at_most
        self._read = read or iter
        self._iterator: Generator[Any, None, None] | None = None
        self._next = 0  # number of the row that the iterator gives next
        self._digests = np.zeros(count, dtype=np.uint64)  # 0: not read yet
        # Deques, which nobody looks into who seeks random generators.
        self._held: deque[Any] = deque()
        self._recent: deque[tuple[int, Any]] = deque(maxlen=RECENT)
        with random_state_kept(stream):
            self._look()

    @property
    def reach(self) -> int:
        """How many rows can be read in any order: the first ones."""
        return len(self._held)

    @property
    def info(self) -> Any:
        """What a stream of `datasets` knows of where it comes from."""
        return self._of_datasets("info")

    @property
    def split(self) -> Any:
        return self._of_datasets("split")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        if row < len(self._held):
            return self._held[row]
        for number, value in self._recent:
            if number == row:
                return value
        if row >= self.count:
            raise IndexError(row)
        if self._iterator is None or row < self._next:
            self.close()
            self._iterator, self._next = self._from_start(), 0
        try:
            while self._next <= row:
                value = next(self._iterator)
                self._next += 1
        except StopIteration:
            self.close()
            raise self._ended(self._next) from None
        except Exception:
            self.close()
            raise
        self._compare(row, value)
        self._recent.append((row, value))
        return value

    def __getitems__(self, row_ids: Sequence[int]) -> list[Any]:
        return [self[row] for row in row_ids]

    def reads_to(self, start: int, stop: int) -> int:
        """Read rows `start` to `stop`, or to the end of a stream that may end before.

        Returns:
            `int`: how many rows there are, as far as is known by then.
        """
        try:
            self.__getitems__(range(start, stop))
        except _Ended:
            pass
        return self.count

    def settle(self) -> int:
        """Read on to the end, where nobody knows yet where that is.

        Returns:
            `int`: how many rows there are.
        """
        start = self._next
        while self.at_most and start < self.count:
            start, before = min(start + RECENT, self.count), start
            self.reads_to(before, start)
        self.at_most = False
        return self.count

    def close(self) -> None:
        """End the reading that is going on."""
        if self._iterator is not None:
            iterator, self._iterator = self._iterator, None
            iterator.close()

    def _from_start(self) -> Generator[Any, None, None]:
        set_epoch = getattr(self.stream, "set_epoch", None)
        epoch = getattr(self.stream, "epoch", None)
        if callable(set_epoch):
            set_epoch(0)
        try:
            yield from self._read(self.stream)
        finally:
            if callable(set_epoch) and isinstance(epoch, int) and epoch:
                set_epoch(epoch)

    def _look(self) -> None:
        """Hold the first rows, and see that they are the same each time."""
        kind = type(self.stream).__name__
        if self._read is iter and iter(self.stream) is iter(self.stream):
            raise DatasetError(f"The dataset is a {kind} that goes on where it stopped. {_AGAIN}{_ANEW}")
        wanted = min(_HELD, self.count)
        self._held.extend(self._first(wanted, 0))
        for row, value in enumerate(self._held):
            self._compare(row, value)
        few = len(self._held) < _FEW
        for seed in range(1, 5 if few else 2):
            again = [_digest(value) for value in self._first(min(_COMPARED, wanted), seed)]
            held = self._digests[: min(_COMPARED, len(self._held))].tolist()
            if again == held:
                continue
            if not again:
                raise DatasetError(f"The dataset is a {kind} that is used up once it is read. {_AGAIN}{_ANEW}")
            row = next((row for row, (a, b) in enumerate(zip(again, held, strict=False)) if a != b), len(again))
            raise DatasetError(
                f"The dataset is a {kind} that is another one each time it is read: row {row} differs between two "
                f"readings. {_AGAIN}Shuffle it with a seed that is the same for each reading "
                "(datasets: stream.shuffle(seed=0)), and draw what is random in the data_collator."
            )
        if len(self._held) < wanted:
            ended = self._ended(len(self._held))
            if not isinstance(ended, _Ended):
                raise ended

    def _first(self, count: int, seed: int) -> list[Any]:
        """The first rows of a reading. What draws random numbers draws others with another seed."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        rows: list[Any] = []
        reading = self._from_start()
        try:
            for value in islice(reading, count):
                rows.append(value)
        except Exception as error:
            if must_pass(error):
                raise
            raise DatasetError(
                f"Row {len(rows)} of the dataset could not be read ({type(error).__name__}: {error}). Mend it, or "
                "leave it out of the training and of the index alike."
            ) from error
        finally:
            reading.close()
        return rows

    def _compare(self, row: int, value: Any) -> None:
        digest = _digest(value)
        before = int(self._digests[row])
        if before and before != digest:
            raise DatasetError(
                f"Row {row} of the stream is another than when it was read before. {_AGAIN}The order and the values "
                "of a stream must not change meanwhile: shuffle it with a seed, draw what is random in the "
                "data_collator, and change no file that it reads."
            )
        self._digests[row] = digest

    def _ended(self, found: int) -> DatasetError:
        """The error of a stream that ended after so many rows; from now on that many are known to be there, where
        fewer were allowed."""
        if self.at_most:
            self.count, self.at_most = found, False
            return _Ended(f"The stream has {found} rows.")
        if not found:
            return DatasetError(f"The stream is empty, and {self.count} rows were to be read.")
        return DatasetError(
            f"The stream ended after {found} rows, and {self.count} were to be read. Pass examples_seen={found}, or "
            "the stream that has as many as were trained on."
        )

    def _of_datasets(self, name: str) -> Any:
        known = type(self.stream).__module__.partition(".")[0] == "datasets"
        return getattr(self.stream, name, None) if known else None


class _Ended(DatasetError):
    """A stream that was allowed to end has ended."""


_ANEW = (
    "Pass an iterable that begins anew each time: an IterableDataset whose __iter__ opens its source, or "
    "datasets.IterableDataset.from_generator(function)."
)


def is_stream(dataset: Any) -> bool:
    """Whether the rows of a dataset can only be had in order."""
    kind = type(dataset)
    if isinstance(dataset, (Mapping, Set, str, bytes, StreamedRows)) or kind.__module__.partition(".")[0] in TABLES:
        return False
    numbered_rows = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    return isinstance(dataset, IterableDataset) or (hasattr(kind, "__iter__") and not numbered_rows)


def numbered(dataset: Any, examples_seen: int | None = None) -> Any:
    """A stream's first rows as rows with numbers; what has numbered rows already stays as it is.

    Args:
        dataset: what the user calls the dataset.
        examples_seen (`int`, *optional*): how many of a stream's rows; by default its length, where it has one.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: nobody knows how many; or `examples_seen` of what is no stream; or as for
        [`StreamedRows`].
    """
    kind = type(dataset).__name__
    if not is_stream(dataset):
        if examples_seen is not None and not isinstance(dataset, StreamedRows):
            raise DatasetError(
                f"examples_seen is for streams, and the dataset is a {kind}, all of whose rows are recorded. Leave it "
                "out, or pass those rows that were trained on (dataset.select(range(n)))."
            )
        return dataset
    if isinstance(dataset, DataLoader):
        raise DatasetError("The dataset is a DataLoader, whose items are batches, not rows. Pass loader.dataset.")
    if isinstance(dataset, Iterator):
        raise DatasetError(f"The dataset is a {kind}, which is used up once it is read. {_AGAIN}{_ANEW}")
    if examples_seen is None:
        try:
            examples_seen = len(dataset)
        except (TypeError, NotImplementedError):
            raise DatasetError(
                f"The dataset is a {kind}, a stream without a length, so that the number of its rows is not known. "
                "Pass examples_seen=, how many of its first rows were trained on; or load it as a map-style dataset "
                "(datasets.load_dataset without streaming, or Dataset.from_generator)."
            ) from None
    return StreamedRows(dataset, whole_number(examples_seen, "examples_seen", 1, DatasetError))


def trained_rows(
    stream: Any, batch_size: int, batches: int, workers: int = 0, examples_seen: int | None = None
) -> StreamedRows:
    """The rows of a stream that a loader made its first batches of, in the order in which it did.

    Workers read a stream side by side, a batch of each in turn, each its share of it or, of a stream that does not ask
    which worker it is in, all of it: the rows are numbered as they came out. Where the batches went through the stream
    more than once, its rows are those of the first time.

    Args:
        stream: as the loader had it.
        batch_size (`int`): rows of a batch.
        batches (`int`): how many batches.
        workers (`int`): processes of the loader.
        examples_seen (`int`, *optional*): how many rows, where the user says so.
    """
    # Whoever works alone reads as this process does.
    taken = None if examples_seen is not None else batches
    read = partial(_side_by_side, batch_size, workers, taken) if workers > 1 else None
    if examples_seen is not None:
        return StreamedRows(stream, whole_number(examples_seen, "examples_seen", 1, DatasetError), read=read)
    count = batches * batch_size
    try:
        count = min(count, len(stream)) if workers <= 1 else count
    except (TypeError, NotImplementedError):
        pass
    return StreamedRows(stream, count, at_most=True, read=read)


def _side_by_side(batch_size: int, workers: int, batches: int | None, stream: Any) -> Iterator[Any]:
    loader = DataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=list)
    for batch in islice(loader, batches):
        yield from batch


def _digest(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(by_value(value), digest_size=8).digest(), "little") | 1  # 0 means unread
