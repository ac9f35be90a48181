"""From ranked rows to an [`Attribution`]: the rows of either end joined to their examples, near-duplicates folded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..algebra.distribution import Spread
from ..checks import whole_number
from ..errors import QueryError
from ..querying.answers import BestRows, RowRanker
from ..querying.measure import Measurement
from ..querying.token_shares import check_shares, query_shares, row_shares
from .attribution import Attribution
from .distribution import ScoreDistribution
from .duplicates import NearDuplicates
from .provenance import Provenance
from .shading import Shading
from .sides import as_tensors


# Where near-duplicates are folded: rows that are looked at for each that is shown, at first and in each further try.
_WIDER, _TRIES = 4, 3
_AT_LEAST = 16

Example = dict[str, Any]
ReadExamples = Callable[[Sequence[int]], Sequence[Example]]


@dataclass(frozen=True)
class AnswerOptions:
    """What an answer shows.

    Args:
        top_k (`int`): k, rows per query.
        largest (`bool`): proponents first, else opponents.
        opponents (`int`): so many of the lowest rows beside them.
        fold_duplicates (`bool`): k distinct rows.
        by_layer (`bool`): the scores of the shown rows layer by layer.
        shade (`bool`): what single tokens add to them.

    Raises:
        [`~lorif_hf.errors.QueryError`]: one of them cannot be, or not beside another.
    """

    top_k: int = 10
    largest: bool = True
    opponents: int = 0
    fold_duplicates: bool = False
    by_layer: bool = False
    shade: bool = False

    def __post_init__(self) -> None:
        whole_number(self.top_k, "top_k", 1, QueryError)
        whole_number(self.opponents, "opponents", 0, QueryError)
        if self.opponents and not self.largest:
            raise QueryError(
                "largest=False ranks the opponents alone; opponents= puts them beside the proponents: leave out "
                "largest=."
            )


class Ranker(Protocol):
    """Ranks the rows for what was asked, as often as is needed."""

    def best(self, k: int, opponents: int = 0) -> BestRows:
        """The k best rows, and so many from the other end."""

    def layer_scores(self, rows: Tensor) -> Tensor:
        """The scores of some rows (n,), ascending, layer by layer: (layers, Q, n)."""


@dataclass(frozen=True)
class Shown:
    """The rows that are shown of a ranking.

    Args:
        scores, indices (`Tensor`): (Q, k) or (Q, T, k), NaN and -1 where there are fewer.
        opponent_scores, opponent_indices (`Tensor` or `None`): the same of the other end.
        copies (`dict[int, list[int]]`): by row that is shown, those that were folded into it.
        examples (`dict[int, dict]`): of the rows that are shown.
        best (`BestRows`): the ranking.
    """

    scores: Tensor
    indices: Tensor
    opponent_scores: Tensor | None
    opponent_indices: Tensor | None
    copies: dict[int, list[int]]
    examples: dict[int, Example]
    best: BestRows

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each query with each of its rows, where queries are whole."""
        sides = [self.indices] if self.opponent_indices is None else [self.indices, self.opponent_indices]
        joined = torch.cat(sides, dim=-1).tolist()
        return [(query, row) for query, rows in enumerate(joined) for row in rows if row >= 0]


def shown_rows(ranker: Ranker, read: ReadExamples, options: AnswerOptions) -> Shown:
    """The rows to show of each query, or of each token of its answer.

    Args:
        ranker (`Ranker`): ranks them.
        read (`Callable`): from row numbers to their examples.
        options (`AnswerOptions`): how many, and whether near-duplicates are folded.
    """
    k, lowest = options.top_k, options.opponents
    examples: dict[int, Example] = {}
    if not options.fold_duplicates:
        # Those that are among the best already are passed over.
        best = ranker.best(k, lowest + k if lowest else 0)
        shown = _distinct(best, k, lowest, None)
    else:
        for attempt in range(_TRIES):
            width, below = (side and max(_WIDER * side, _AT_LEAST) * _WIDER**attempt for side in (k, lowest))
            best = ranker.best(width, below and below + k)
            missing = [row for row in best.rows if row not in examples]
            examples.update(zip(missing, read(missing), strict=True))
            texts = {row: example["text"] for row, example in examples.items()}
            if examples and not any(texts.values()):
                raise QueryError(
                    "fold_duplicates= compares the texts of rows, and none is in this index (store_text=False): leave "
                    "it out."
                )
            shown = _distinct(best, k, lowest, NearDuplicates(texts))
            if best.scores.shape[-1] < width or not _lacking(shown, k, lowest):
                break
    sides, copies = shown
    scores, indices, *rest = sides
    rows = sorted({row for side in (indices, *rest[1:]) for row in side.flatten().tolist() if row >= 0})
    missing = [row for row in rows if row not in examples]
    examples.update(zip(missing, read(missing), strict=True))
    joined = {row: examples[row] for row in rows}
    for row in joined.keys() & best.pieces.keys():
        joined[row] = {**joined[row], "pieces": best.pieces[row]}
    opponent_scores, opponent_indices = rest or (None, None)
    return Shown(scores, indices, opponent_scores, opponent_indices, copies, joined, best)


def answer(
    asked: Measurement,
    options: AnswerOptions,
    read: ReadExamples,
    provenance: Provenance,
    documents: np.ndarray | None = None,
) -> Attribution:
    """The answer of one index.

    Args:
        asked (`Measurement`): the queries.
        options (`AnswerOptions`): what is shown.
        read (`Callable`): from row numbers to their examples.
        provenance (`Provenance`): where the answer comes from.
        documents (`np.ndarray`, *optional*): (N,), as [`~lorif_hf.querying.answers.RowRanker`] takes them.

    Raises:
        [`~lorif_hf.errors.QueryError`]: what is to be shown is not to be had of these queries, or this index.
    """
    check_layers(asked, options)
    if options.shade:
        check_shares(asked)
        if documents is not None:
            raise QueryError("shade=True is of rows, each with its text: leave out by_document= or shade=.")
    ranker = RowRanker(asked, options.largest, documents)
    shown = shown_rows(ranker, read, options)
    beside: dict[str, Any] = {}
    if options.by_layer:
        beside = {"layers": [entry.name for entry in asked.scored], "layer_scores": layers_of(ranker, shown)}
    if options.shade:
        rows = row_shares(asked, ranker.measured, shown.pairs, shown.examples)
        beside["shading"] = Shading(*query_shares(asked, shown.pairs), rows.tokens, rows.shares)
    return attribution_of(asked, shown, provenance, **beside)


def check_layers(asked: Measurement, options: AnswerOptions) -> None:
    """See that the scores are there layer by layer, where they are asked for.

    Raises:
        [`~lorif_hf.errors.QueryError`]: they are not.
    """
    if options.by_layer and asked.index.config.projection_dim is not None:
        raise QueryError(
            "This index projects all layers together (projection_dim): its scores have no single layers. Leave out "
            "by_layer=."
        )
    if options.by_layer and asked.tokens is not None:
        raise QueryError("by_layer=True is of the scores of whole queries: leave out per_token=.")


def attribution_of(asked: Measurement, shown: Shown, provenance: Provenance, **beside: Any) -> Attribution:
    """The answer to what was asked.

    Args:
        asked (`Measurement`): the queries.
        shown (`Shown`): their rows.
        provenance (`Provenance`): where the answer comes from.
        beside: other fields of [`Attribution`].
    """
    spreads = [
        _distribution(spread) if asked.tokens is None else [_distribution(of_token) for of_token in spread]
        for spread in shown.best.spreads
    ]
    return Attribution(
        shown.scores,
        shown.indices,
        shown.examples,
        asked.texts,
        shown.best.losses,
        asked.measure,
        asked.tokens,
        shown.opponent_scores,
        shown.opponent_indices,
        shown.copies,
        distribution=spreads,
        prompts=asked.prompts,
        provenance=provenance,
        **beside,
    )


def layers_of(ranker: Ranker, shown: Shown) -> dict[tuple[int, int], list[float]]:
    """By query and row that is shown, the score of each layer; of a document, the sum over its pieces.

    Args:
        ranker (`Ranker`): of queries that are whole.
        shown (`Shown`): the rows.
    """
    members = {row: shown.best.pieces.get(row, [row]) for _, row in shown.pairs}
    rows = sorted({piece for pieces in members.values() for piece in pieces})
    if not rows:
        return {}
    place = {row: number for number, row in enumerate(rows)}
    scores = ranker.layer_scores(torch.tensor(rows))
    places = {row: [place[piece] for piece in pieces] for row, pieces in members.items()}
    return {(query, row): scores[:, query, places[row]].sum(dim=1).tolist() for query, row in shown.pairs}


def _distribution(spread: Spread) -> ScoreDistribution:
    counted = spread.count, spread.mean, spread.standard_deviation
    return ScoreDistribution(*counted, spread.edges, spread.counts)


def _distinct(
    best: BestRows, k: int, lowest: int, duplicates: NearDuplicates | None
) -> tuple[list[Tensor], dict[int, list[int]]]:
    """The first rows of each side of which none is on the other, or a near-duplicate of one before it: scores and rows
    of each side; and by row, its near-duplicates."""
    copies: dict[int, list[int]] = {}
    taken: list[set[int]] = [set() for _ in range(best.indices.shape[:-1].numel())]
    sides = [(best.scores, best.indices, k)]
    if best.opponent_scores is not None and best.opponent_indices is not None:
        sides.append((best.opponent_scores, best.opponent_indices, lowest))
    made = []
    for scores, indices, most in sides:
        lists = (side.reshape(len(taken), side.shape[-1]).tolist() for side in (scores, indices))
        kept_scores, kept_rows = [], []
        for values, rows, gone in zip(*lists, taken, strict=True):
            kept = _first(rows, most, gone, best.pieces, duplicates, copies)
            kept_scores.append([values[place] for place in kept])
            kept_rows.append([rows[place] for place in kept])
        made += as_tensors(kept_scores, kept_rows, indices.shape[:-1])
    return made, copies


def _first(
    rows: Sequence[int],
    most: int,
    taken: set[int],
    pieces: Mapping[int, Sequence[int]],
    duplicates: NearDuplicates | None,
    copies: dict[int, list[int]],
) -> list[int]:
    """Places of the first rows to show, at most so many; `taken` and `copies` are filled."""
    kept: list[int] = []
    for place, row in enumerate(rows):
        if row < 0 or row in taken:
            continue
        like = None if duplicates is None else duplicates.first_like(row, [rows[other] for other in kept])
        if like is not None:
            folded = copies.setdefault(like, [])
            folded += [] if row in folded else [row]
        elif len(kept) < most:
            kept.append(place)
        elif duplicates is None:
            break
        else:
            continue
        taken.update(pieces.get(row, (row,)))
    return kept


def _lacking(shown: tuple[list[Tensor], dict[int, list[int]]], k: int, lowest: int) -> bool:
    """Whether a ranking that has rows at all has fewer distinct ones than were asked for."""
    sides, _ = shown
    for rows, most in zip(sides[1::2], (k, lowest), strict=False):
        held = (rows >= 0).sum(dim=-1)
        if bool(((held < most) & (held > 0)).any()):
            return True
    return False
