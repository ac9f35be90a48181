"""What is known of each row at the end of a build: the example tables, and the layers that no row speaks of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..recording.rows import TrainingRows
from ..storage.examples import write_examples
from ..storage.files import file_entry
from ..storage.layout import ModuleEntry, Shard, example_file
from .owned_columns import OwnedColumns


_TOGETHER = 128  # rows whose texts are read at once
_LOOKED_AT = 16  # rows by which the size of all texts is told
ACTIVE = "active"  # in a shard's table: which stored gradients are not zero in all of its rows, uint8 (entries,)


def write_example_tables(
    folder: Path,
    rows: TrainingRows,
    ranges: Sequence[tuple[int, int]],
    tables: Sequence[Mapping[str, Tensor]],
    self_influence: Tensor,
    owned: OwnedColumns,
) -> list[Shard]:
    """Write the example table of each shard.

    Args:
        folder (`Path`): of the index.
        rows (`TrainingRows`): the training set.
        ranges (`Sequence[tuple[int, int]]`): the rows of each shard, start and stop.
        tables (`Sequence[Mapping[str, Tensor]]`): what was recorded of them: losses, num_tokens; (n,) each.
        self_influence (`Tensor`): float64 (N,).
        owned (`OwnedColumns`): the owner's columns of them.
    """
    shards = []
    for number, ((start, stop), recorded) in enumerate(zip(ranges, tables, strict=True)):
        file = example_file(number)
        names, texts, values = _shown(rows, owned, start, stop)
        columns = {
            "row": range(start, stop),
            "example_id": names,
            "text": texts,
            "num_tokens": recorded["num_tokens"].tolist(),
            "loss": recorded["losses"].tolist(),
            "self_influence": self_influence[start:stop].tolist(),
            **({} if rows.documents is None else rows.documents.table(start, stop)),
            **values,
        }
        write_examples(folder / file, columns, owned.kinds)
        entry = file_entry(folder, file)
        shards.append(Shard(entry.file, entry.bytes, entry.sha256, start, stop - start))
    return shards


def _shown(
    rows: TrainingRows, owned: OwnedColumns, start: int, stop: int
) -> tuple[list[str | None], list[str | None], dict[str, list[Any]]]:
    """The users' names and the texts of a range of rows, and the owner's columns: few at a time, so that a stream need
    not go back."""
    names: list[str | None] = []
    texts: list[str | None] = []
    values: dict[str, list[Any]] = {name: [] for name in owned.kinds}
    for first in range(start, stop, _TOGETHER):
        last = min(first + _TOGETHER, stop)
        names += rows.example_ids(first, last)
        texts += rows.texts(first, last)
        for name, held in owned.values(first, last).items():
            values[name] += held
    return names, texts, values


def text_bytes(rows: TrainingRows) -> int:
    """What the texts of all rows take in the example tables, roughly: by those of a few rows, packed to about half."""
    looked_at = rows.within_reach(_LOOKED_AT)
    texts = [text or "" for row in looked_at for text in rows.texts(row, row + 1)]
    return rows.count * sum(len(text.encode(errors="replace")) for text in texts) // (2 * max(1, len(texts)))


def silent_layers(tables: Sequence[Mapping[str, Tensor]], entries: Sequence[ModuleEntry]) -> dict[str, str]:
    """Layers whose gradient is zero in every row, and what is said of them; none where that is all of them."""
    active = torch.stack([table[ACTIVE] for table in tables]).bool().any(dim=0).tolist()
    if not any(active):
        return {}
    silent = (entry.name for entry, seen in zip(entries, active, strict=True) if not seen)
    return dict.fromkeys(silent, "its gradient is zero in every row")
