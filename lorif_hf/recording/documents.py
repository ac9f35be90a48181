"""The documents of packed rows: each is a row of the index."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DatasetError
from ..tasks.segments import Segments
from .row_access import named_rows, read_rows


UNKNOWN = -1  # number of a document of which nobody knows which one it is


@dataclass(frozen=True, eq=False)
class Documents:
    """Where the documents of a dataset are: D of them, in the order in which they stand in its rows.

    Args:
        source_rows (`np.ndarray`): int64 (D,), ascending: the row of the dataset that holds each.
        starts, stops (`np.ndarray`): int64 (D,): its tokens there are `input_ids[start:stop]`.
        numbers (`np.ndarray`): int64 (D,): which document it is a piece of, where packing cut some; -1: unknown.
        told (`bool`, *optional*, defaults to `True`): whether the model is told where they begin.
    """

    source_rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    numbers: np.ndarray
    told: bool = True

    @classmethod
    def of(
        cls, pieces: Iterable[tuple[int, Sequence[tuple[int, int]]]], numbers: Sequence[int] | None = None
    ) -> "Documents":
        """From the start and the stop of each document in each row.

        Args:
            pieces (`Iterable`): row of the dataset, and what it holds.
            numbers (`Sequence[int]`, *optional*): of all documents, told apart by their tokens alone. By default none
                is known.
        """
        tables = [
            np.array([(row, *place) for place in inside], dtype=np.int64).reshape(-1, 3) for row, inside in pieces
        ]
        table = np.concatenate([np.zeros((0, 3), dtype=np.int64), *tables])
        known = np.full(len(table), UNKNOWN) if numbers is None else np.array(numbers)
        return cls(table[:, 0], table[:, 1], table[:, 2], known.astype(np.int64), numbers is None)

    def __len__(self) -> int:
        return len(self.source_rows)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (D,) tokens of each."""
        return self.stops - self.starts

    def digest(self) -> str:
        """Hash over where they are."""
        table = np.stack([self.source_rows, self.starts, self.stops, self.numbers]).astype("<i8")
        return hashlib.sha256(table.tobytes()).hexdigest()

    def by_source(self, row_ids: Sequence[int]) -> dict[int, list[int]]:
        """Documents by the row of the dataset that holds them."""
        together: dict[int, list[int]] = {}
        for row in row_ids:
            together.setdefault(int(self.source_rows[row]), []).append(row)
        return together

    def following(self) -> np.ndarray:
        """Documents before which another one stands in their row: theirs is the gradient that a neighbour changes."""
        return np.flatnonzero(np.r_[False, self.source_rows[1:] == self.source_rows[:-1]])

    def sample(self, count: int) -> list[int]:
        """About `count` documents, those of whole rows, evenly spaced: a pass goes over whole rows all the same."""
        sources = np.unique(self.source_rows)
        rows = max(1, min(len(sources), round(len(sources) * count / len(self))))
        chosen = sources[np.arange(rows) * len(sources) // rows]
        return np.flatnonzero(np.isin(self.source_rows, chosen)).tolist()

    def table(self, start: int, stop: int) -> dict[str, list[int | None]]:
        """What the example table says of documents `start` to `stop`."""
        numbers = [None if number == UNKNOWN else number for number in self.numbers[start:stop].tolist()]
        places = {"source_row": self.source_rows, "start": self.starts, "stop": self.stops}
        return {**{name: values[start:stop].tolist() for name, values in places.items()}, "document": numbers}

    def segments(self, row_ids: Sequence[int], features: Sequence[Any], batch: Mapping[str, Any]) -> Segments:
        """Where documents are in the batch that a collator made of their rows.

        Args:
            row_ids (`Sequence[int]`): the documents.
            features (`Sequence[Mapping]`): their rows, as [`~Documents.by_source`] has them.
            batch (`Mapping`): of these rows.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: the batch holds other tokens than the rows, or no label for each.
        """
        sources = list(self.by_source(row_ids))
        rows = [tokens_of(feature) for feature in features]
        for source, tokens in zip(sources, rows, strict=True):
            end = int(self.stops[np.searchsorted(self.source_rows, source, side="right") - 1])
            if tokens is None or end > len(tokens):
                raise DatasetError(
                    f"Row {source} of the dataset has {0 if tokens is None else len(tokens)} tokens in column "
                    f"'input_ids', and its documents reach up to {end}: seq_lengths, position_ids or cu_seq_lens are "
                    "those of other tokens. Pack the dataset again."
                )
        offsets = places_of(rows, batch)
        labels, ids = batch.get("labels"), batch.get("input_ids")
        if offsets is None or not isinstance(labels, Tensor) or labels.shape != ids.shape:  # type: ignore[union-attr]
            raise DatasetError(
                f"{named_rows(sources)} of the dataset, packed, cannot be found in what the collator makes of them: "
                "expected their input_ids one after another or below each other, and a label for each token. Pass the "
                "data_collator of the training, or add a 'labels' column."
            )
        place = dict(zip(sources, offsets, strict=True))
        found = []
        for row in row_ids:
            sequence, first = place[int(self.source_rows[row])]
            found.append((sequence, first + int(self.starts[row]), first + int(self.stops[row])))
        size, length = ids.shape  # type: ignore[union-attr]
        return Segments((size, length), found)


def tokens_of(feature: Any) -> np.ndarray | None:
    """A row's `input_ids`, int64 (T,); `None` where it has none."""
    ids = feature.get("input_ids") if isinstance(feature, Mapping) else None
    if ids is None:
        return None
    try:
        tokens = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = tokens.dtype.kind in "iu" or not tokens.size  # an empty list has no type
    return tokens.astype(np.int64) if tokens.ndim == 1 and whole else None


def places_of(rows: Sequence[np.ndarray | None], batch: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Where rows begin in a batch of them: a sequence each, padded at either end, or one after another in one.

    Returns:
        `list` of sequence and token; `None` where the batch holds something else.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or any(row is None for row in rows):
        return None
    sizes: list[int] = [len(row) for row in rows if row is not None]
    if len(ids) == len(rows):
        left = [(number, ids.shape[1] - size) for number, size in enumerate(sizes)]
        candidates = [[(number, 0) for number in range(len(rows))], left]
    elif len(ids) == 1:
        candidates = [[(0, sum(sizes[:number])) for number in range(len(rows))]]
    else:
        return None
    held = ids.cpu().numpy()
    for offsets in candidates:
        parts = [held[s, max(0, first) :][:size] for size, (s, first) in zip(sizes, offsets, strict=True)]
        if all(np.array_equal(part, row) for part, row in zip(parts, rows, strict=True) if row is not None):
            return offsets
    return None


def flattened(features: Sequence[Any], batch: Mapping[str, Any]) -> Segments | None:
    """Where rows are in a batch in which a collator put them one after another; `None`: it did not."""
    ids = batch.get("input_ids")
    if len(features) < 2 or not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        return None
    rows = [tokens_of(feature) for feature in features]
    offsets = places_of(rows, batch)
    if offsets is None:
        return None
    places = [(s, first, first + len(row)) for row, (s, first) in zip(rows, offsets, strict=True) if row is not None]
    return Segments((1, ids.shape[1]), places)


class DocumentRows:
    """A packed dataset as one of its documents: what its rows hold of each token, of a document's tokens alone.

    Args:
        dataset: the packed rows.
        documents (`Documents`): in them.
    """

    def __init__(self, dataset: Any, documents: Documents):
        self.dataset, self.documents = dataset, documents
        self._read: tuple[int, Mapping[str, Any]] | None = None  # the row that was read last

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, number: int) -> dict[str, Any]:
        documents = self.documents
        source = int(documents.source_rows[number])
        if self._read is None or self._read[0] != source:
            (row,) = read_rows(self.dataset, [source])
            self._read = (source, row)
        row = self._read[1]
        tokens = tokens_of(row)
        if tokens is None:
            return {}
        part = slice(int(documents.starts[number]), int(documents.stops[number]))
        return {name: value[part] for name, value in row.items() if _is_of_tokens(value, len(tokens))}


def _is_of_tokens(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple, Tensor, np.ndarray)) and len(value) == count


class DocumentCollator:
    """Packed rows as one sequence without padding, in which positions begin anew with each document.

    As TRL and transformers collate them: attention stays within a document where no attention mask is given, and
    nothing predicts a document's first token.

    Args:
        pieces (`Callable`): gives start and stop of each document of a row.
    """

    def __init__(self, pieces: Callable[[Mapping[str, Any]], Sequence[tuple[int, int]]]):
        self.pieces = pieces

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        columns: dict[str, list[Tensor]] = {"input_ids": [], "labels": [], "position_ids": []}
        for feature in features:
            ids = torch.as_tensor(feature["input_ids"]).long()
            given = feature.get("labels")
            labels = ids.clone() if given is None else torch.as_tensor(given).long().clone()
            positions = torch.arange(len(ids))
            for start, stop in self.pieces(feature):
                labels[start] = -100
                positions[start:stop] -= start
            own = feature.get("position_ids")
            columns["position_ids"].append(positions if own is None else torch.as_tensor(own).long())
            columns["input_ids"].append(ids)
            columns["labels"].append(labels)
        return {name: torch.cat(values).unsqueeze(0) for name, values in columns.items()}
