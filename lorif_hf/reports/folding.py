"""Near-duplicates of a result that is there already, folded into the best of them."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .duplicates import NearDuplicates
from .sides import as_tensors


if TYPE_CHECKING:
    from .attribution import Attribution


def folded(result: "Attribution") -> "Attribution":
    """Of near-duplicates that are shown of a query (or token), the first of each side alone; `copies` has the others.

    Args:
        result (`Attribution`): what is shown.
    """
    duplicates = NearDuplicates({row: example.get("text") for row, example in result.examples.items()})
    copies = {row: list(held) for row, held in result.copies.items()}
    kept: dict[str, Any] = {}
    for scores, rows in (("scores", "indices"), ("opponent_scores", "opponent_indices")):
        if (held := getattr(result, rows)) is not None:
            kept[scores], kept[rows] = _folded(getattr(result, scores), held, duplicates, copies)
    shown = {row for name in ("indices", "opponent_indices") if name in kept for row in kept[name].flatten().tolist()}
    return replace(
        result,
        **kept,
        examples={row: example for row, example in result.examples.items() if row in shown},
        copies={row: held for row, held in copies.items() if row in shown and held},
    )


def _folded(scores: Tensor, rows: Tensor, duplicates: NearDuplicates, copies: dict[int, list[int]]) -> list[Tensor]:
    shape = rows.shape[:-1]
    kept_scores, kept_rows = [], []
    for values, row_ids in zip(scores.flatten(0, -2).tolist(), rows.flatten(0, -2).tolist(), strict=True):
        kept: list[int] = []
        for place, row in enumerate(row_ids):
            like = duplicates.first_like(row, [row_ids[other] for other in kept]) if row >= 0 else None
            if row >= 0 and like is None:
                kept.append(place)
            elif like is not None:
                held = copies.setdefault(like, [])
                held += [other for other in (row, *copies.get(row, ())) if other not in held]
        kept_scores.append([values[place] for place in kept])
        kept_rows.append([row_ids[place] for place in kept])
    return as_tensors(kept_scores, kept_rows, shape)
