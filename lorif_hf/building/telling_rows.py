"""A few rows in which what is recorded wrongly shows, and each of them alone."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DatasetError
from ..recording.rows import TrainingRows
from ..tasks.segments import SEGMENTS


_LOOKED_AT = 1000  # rows, evenly spaced, of which these are chosen
_TRIES = 60  # of them, until those with a target are found
_LABELS_LOOKED_AT, _MOST_LABELS = 200, 8  # rows whose labels are read, and labels of which a row is taken


def telling_rows(rows: TrainingRows, count: int) -> list[int]:
    """Numbers of at most so many rows, of different lengths where they have some: what depends on padding or length
    shows there. One in between comes first, then the longest, then the shortest, which is no order that a model could
    sort a batch into.

    Of packed rows they are documents that follow another one there: attention that goes beyond a document shows in
    these alone. They have a target, where a few dozen tries find some. They are compared together whatever the batch
    size of the build is, since queries have another one. Where padding changes a row, all are of the most common
    length.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: no row of the dataset has a target.
    """
    sample = _sample(rows)
    order = sample
    try:
        lengths = dict(zip(sample, rows.lengths(sample), strict=True))
        if rows.task.padding_counts:  # then rows of one length alone go together
            ((common, _),) = Counter(lengths.values()).most_common(1)
            sample = [row for row in sample if lengths[row] == common]
        by_length = sorted(sample, key=lambda row: (lengths[row], row))
        middle = by_length[len(by_length) // 2]
        # From both ends in turn: the longest, the shortest, and so on.
        order = [middle, *(row for pair in zip(reversed(by_length), by_length, strict=True) for row in pair)]
    except (DatasetError, TypeError, KeyError):
        pass
    chosen: list[int] = []
    order = list(dict.fromkeys(order))
    for row in order[:_TRIES]:
        if len(chosen) < count and _has_target(rows, row):
            chosen.append(row)
    if not chosen and rows.count <= _TRIES:
        raise no_target(rows.count)
    return chosen or order[:count]


def _sample(rows: TrainingRows) -> list[int]:
    following = [] if rows.documents is None else rows.documents.following().tolist()
    following = [row for row in following if row < rows.reach]
    count = min(_LOOKED_AT, len(following))
    return [following[number * len(following) // count] for number in range(count)] or rows.within_reach(_LOOKED_AT)


def no_target(count: int) -> DatasetError:
    """The error of so many rows, the first, of which none has a target."""
    return DatasetError(
        f"None of the first {count} rows has a target: all their labels are -100 (or there is a single token). Check "
        "the collator and the truncation."
    )


def rows_of_each_label(rows: TrainingRows) -> list[int]:
    """A row of each label, where rows have one each: what weighs labels otherwise shows in them. Else none."""
    by_label: dict[Any, int] = {}
    for row in rows.within_reach(_LABELS_LOOKED_AT):
        labels = rows.single(row).get("labels")
        if not isinstance(labels, Tensor) or labels.numel() != 1:
            return []
        by_label.setdefault(labels.item(), row)
    return sorted(by_label.values())[:_MOST_LABELS] if len(by_label) > 1 else []


def among_others(batch: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A batch whose examples share sequences, with other tokens in all of them but one."""
    segments, ids = batch[SEGMENTS], batch["input_ids"]
    own = (segments.owners() == place).to(ids.device)
    return {**batch, "input_ids": torch.where(own, ids, ids.flip(1))}


def _has_target(rows: TrainingRows, row: int) -> bool:
    """Whether a row has anything to be measured on, as far as its task tells."""
    try:
        targets = rows.task.targets(rows.single(row))
    except Exception:  # is told when the row is recorded
        return True
    return targets is None or bool(targets.any())
