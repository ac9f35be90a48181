"""What is asked, scored against every row that is asked of: the best rows of each query, or all scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .device_scan import DeviceScan
from .measure import MeasuredQueries, Measurement
from .pieces import best_documents
from .ranked import RankedScores, RunningRanking
from .scan import Scan, allocate, best_scores, every_score


@dataclass(frozen=True)
class BestRows:
    """The best rows of each query, or of each token of each query's answer.

    Args:
        scores (`Tensor`): float32 (Q, k), best first; of tokens (Q, T, k), NaN beyond a query's last.
        indices (`Tensor`): int64 of the same shape, the rows; -1 beyond a query's last token.
        losses (`list[float]`): what was measured of each query, nats.
        spreads (`list`): how all scores of each query are spread, a [`~lorif_hf.algebra.distribution.Spread`]; of
            tokens a list of these.
        opponent_scores, opponent_indices (`Tensor` or `None`): those of the other end, in the same form.
        pieces (`dict[int, list[int]]`): where documents are ranked, by row the rows of all pieces of its document.
    """

    scores: Tensor
    indices: Tensor
    losses: list[float]
    spreads: list[Any]
    opponent_scores: Tensor | None = None
    opponent_indices: Tensor | None = None
    pieces: dict[int, list[int]] = field(default_factory=dict)

    @property
    def rows(self) -> list[int]:
        """All rows of it, ascending."""
        sides = [self.indices] if self.opponent_indices is None else [self.indices, self.opponent_indices]
        return sorted({row for side in sides for row in side.flatten().tolist() if row >= 0})


@dataclass(frozen=True)
class AllScores:
    """Every score, and the queries as they were measured.

    Args:
        scores: float32 (Q, N); of tokens (Q, T, N), NaN beyond a query's last; or a dict of these by module.
        losses (`list[float]`): what was measured of each query, nats.
        asked (`Measurement`): the queries.
    """

    scores: Any
    losses: list[float]
    asked: Measurement


class RowRanker:
    """Ranks the rows for what is asked, as often as is needed: queries that are measured whole are measured once.

    Args:
        asked (`Measurement`): the queries.
        largest (`bool`, *optional*, defaults to `True`): proponents first, else opponents.
        documents (`np.ndarray`, *optional*): (N,) the document that each row of the whole index is a piece of, NaN:
            one of its own; documents are ranked then, each by its best piece.
    """

    def __init__(self, asked: Measurement, largest: bool = True, documents: np.ndarray | None = None):
        self.asked, self.largest, self.documents = asked, largest, documents

    @cached_property
    def measured(self) -> MeasuredQueries:
        """The queries, measured whole."""
        return self.asked.whole()

    def best(self, k: int, opponents: int = 0) -> BestRows:
        """The k best rows; of tokens, a pass over the index for every `batch_size` of them.

        Args:
            k (`int`): how many; at most N come out.
            opponents (`int`, *optional*, defaults to 0): so many from the other end beside them.
        """
        if self.asked.tokens is None:
            ranked = self._ranked(self.measured, k, opponents)
            sides = ranked.opponent_scores, ranked.opponent_indices
            losses, spreads = self.measured.losses, list(ranked.spreads)
            return BestRows(ranked.scores, ranked.indices, losses, spreads, *sides, dict(ranked.pieces))
        return self._by_token(k, opponents)

    def layer_scores(self, rows: Tensor) -> Tensor:
        """The scores of some rows (n,), ascending, layer by layer: float32 (layers, Q, n). Queries are whole."""
        scan = replace(_scan(self.asked, self.measured, True), rows=rows)
        scores = allocate((len(scan.entries), scan.queries, len(rows)))
        _fill(self.asked, scan, scores)
        return scores

    def _ranked(self, prepared: MeasuredQueries, k: int, opponents: int) -> RankedScores:
        asked, largest, documents = self.asked, self.largest, self.documents
        scan = _scan(asked, prepared, True)
        if documents is None:
            if asked.device is not None:
                return DeviceScan(scan, asked.device).best(k, largest, opponents)
            return best_scores(scan, k, largest, opponents)
        dense = allocate((scan.queries, asked.index.count))
        _fill(asked, scan, dense)
        rows = torch.arange(len(documents)) if asked.index.rows is None else asked.index.rows
        return best_documents(dense, rows, documents[rows.numpy()], k, largest, opponents)

    def _by_token(self, k: int, opponents: int) -> BestRows:
        """The best rows of each token, group by group."""
        tokens = self.asked.tokens
        assert tokens is not None
        losses = [0.0] * len(tokens)
        pieces: dict[int, list[int]] = {}
        spreads: list[list[Any]] = [[] for _ in tokens]
        sides: list[Tensor] = []
        for number, places, prepared in self.asked.by_token():
            ranked = self._ranked(prepared, k, opponents)
            parts = [ranked.scores, ranked.indices]
            if ranked.opponent_scores is not None and ranked.opponent_indices is not None:
                parts += [ranked.opponent_scores, ranked.opponent_indices]
            if not sides:
                shape = (len(tokens), max(map(len, tokens)))
                sides = [_nothing((*shape, part.shape[1]), part) for part in parts]
            for side, part in zip(sides, parts, strict=True):
                side[number, places] = part
            losses[number] += sum(prepared.losses)
            spreads[number] += ranked.spreads
            pieces.update(ranked.pieces)
        scores, indices, *worst = sides
        return BestRows(scores, indices, losses, spreads, *_either(worst), pieces=pieces)


def best_of(
    scores: Tensor, k: int, largest: bool, tokens: Sequence[Sequence[str]] | None, opponents: int = 0
) -> BestRows:
    """The k best of dense scores, (Q, N) or (Q, T, N), as [`RowRanker`] has them, without losses."""
    flat = scores.reshape(-1, scores.shape[-1])
    ranking = RunningRanking(len(flat), k, largest, opponents)
    ranking.update(flat.nan_to_num(), torch.arange(scores.shape[-1]))
    ranked = ranking.ranked()
    sides = [ranked.scores, ranked.indices]
    if ranked.opponent_scores is not None and ranked.opponent_indices is not None:
        sides += [ranked.opponent_scores, ranked.opponent_indices]
    sides = [side.view(*scores.shape[:-1], side.shape[1]) for side in sides]
    spreads: list[Any] = list(ranked.spreads)
    if tokens is not None:
        longest = scores.shape[1]
        spreads = [spreads[query * longest :][: len(texts)] for query, texts in enumerate(tokens)]
        for query, texts in enumerate(tokens):
            for side in sides:
                side[query, len(texts) :] = _nothing((), side)
    best, indices, *worst = sides
    return BestRows(best, indices, [], spreads, *_either(worst))


def _either(worst: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Scores and rows of the other end, where it was asked for."""
    return (worst[0], worst[1]) if worst else (None, None)


def _nothing(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What stands where there is no token: NaN for a score, -1 for a row."""
    return torch.full(shape, math.nan if like.is_floating_point() else -1, dtype=like.dtype)


def all_scores(asked: Measurement, weighted: bool, per_module: bool) -> AllScores:
    """Every score of every query or token.

    Args:
        asked (`Measurement`): the queries.
        weighted (`bool`): whether to multiply by the examples' weights.
        per_module (`bool`): whether to give them layer by layer instead of their sum.
    """
    names = [module.name for module in asked.scored]
    layers = (len(names),) if per_module else ()
    if asked.tokens is None:
        prepared = asked.whole()
        losses = prepared.losses
        dense = allocate((*layers, len(losses), asked.index.count))
        _fill(asked, _scan(asked, prepared, weighted), dense)
    else:
        losses = [0.0] * len(asked.tokens)
        dense = allocate((*layers, len(losses), max(map(len, asked.tokens)), asked.index.count))
        for number, tokens in enumerate(asked.tokens):
            dense[..., number, len(tokens) :, :] = math.nan
        for number, places, prepared in asked.by_token():
            _fill(asked, _scan(asked, prepared, weighted), dense[..., number, places, :])
            losses[number] += sum(prepared.losses)
    return AllScores(dict(zip(names, dense, strict=True)) if per_module else dense, losses, asked)


def _fill(asked: Measurement, scan: Scan, into: Tensor) -> None:
    """Every score, from where the queries are scored."""
    if asked.device is None:
        every_score(scan, into)
    else:
        DeviceScan(scan, asked.device).every(into)


def _scan(asked: Measurement, prepared: MeasuredQueries, weighted: bool) -> Scan:
    index, queries = asked.index, len(prepared.losses)
    weighted = weighted and index.config.weighted
    return Scan(queries, prepared.preconditioned, index.reader, asked.scored, index.codec, index.rows, weighted)
