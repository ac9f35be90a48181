"""What is asked, scored against every row that is asked of: the best rows of each query, or all scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algebra.ranking import RunningTopK
from .device_scan import DeviceScan
from .measure import MeasuredQueries, Measurement
from .pieces import BestDocuments, best_documents
from .scan import Scan, allocate, best_scores, every_score


@dataclass(frozen=True)
class BestRows:
    """The best rows of each query, or of each token of each query's answer.

    Args:
        scores (`Tensor`): float32 (Q, k), best first; of tokens (Q, T, k), NaN beyond a query's last.
        indices (`Tensor`): int64 of the same shape, the rows; -1 beyond a query's last token.
        losses (`list[float]`): what was measured of each query, nats.
        pieces (`dict[int, list[int]]`): where documents are ranked, by row the rows of all pieces of its document.
    """

    scores: Tensor
    indices: Tensor
    losses: list[float]
    pieces: dict[int, list[int]] = field(default_factory=dict)


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


Ranked = RunningTopK | BestDocuments


def best_rows(asked: Measurement, k: int, largest: bool, documents: np.ndarray | None = None) -> BestRows:
    """The k best rows, or the k worst; of tokens, a pass over the index for every `batch_size` of them.

    Args:
        asked (`Measurement`): the queries.
        k (`int`): how many; at most N come out.
        largest (`bool`): proponents first, else opponents.
        documents (`np.ndarray`, *optional*): (N,) the document that each row of the whole index is a piece of, NaN:
            one of its own; documents are ranked then, each by its best piece.
    """

    def ranked(prepared: MeasuredQueries) -> Ranked:
        scan = _scan(asked, prepared, True)
        if documents is None:
            on_device = asked.device and DeviceScan(scan, asked.device)
            return on_device.best(k, largest) if on_device else best_scores(scan, k, largest)
        dense = allocate((scan.queries, asked.index.count))
        _fill(asked, scan, dense)
        rows = torch.arange(len(documents)) if asked.index.rows is None else asked.index.rows
        return best_documents(dense, rows, documents[rows.numpy()], k, largest)

    if asked.tokens is None:
        prepared = asked.whole()
        best = ranked(prepared)
        return BestRows(best.scores, best.indices, prepared.losses, _pieces(best))
    return _by_token(asked, ranked)


def best_of(scores: Tensor, k: int, largest: bool, tokens: Sequence[Sequence[str]] | None) -> BestRows:
    """The k best of dense scores, (Q, N) or (Q, T, N); arguments as of [`best_rows`], without losses."""
    flat = scores.reshape(-1, scores.shape[-1])
    best = RunningTopK(len(flat), k, largest)
    best.update(flat.nan_to_num(), torch.arange(scores.shape[-1]))
    shape = (*scores.shape[:-1], best.scores.shape[1])
    ranked = BestRows(best.scores.view(shape), best.indices.view(shape), [])
    for query, texts in enumerate(tokens or ()):
        ranked.scores[query, len(texts) :], ranked.indices[query, len(texts) :] = math.nan, -1
    return ranked


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


def _by_token(asked: Measurement, ranked: Callable[[MeasuredQueries], Ranked]) -> BestRows:
    """The best rows of each token, group by group."""
    assert asked.tokens is not None
    scores, indices = torch.empty(0), torch.empty(0)
    losses, pieces = [0.0] * len(asked.tokens), {}
    for number, places, prepared in asked.by_token():
        best = ranked(prepared)
        if not scores.numel():
            shape = (len(asked.tokens), max(map(len, asked.tokens)), best.scores.shape[1])
            scores, indices = torch.full(shape, math.nan), torch.full(shape, -1)
        scores[number, places], indices[number, places] = best.scores, best.indices
        losses[number] += sum(prepared.losses)
        pieces.update(_pieces(best))
    return BestRows(scores, indices, losses, pieces)


def _pieces(best: Ranked) -> dict[int, list[int]]:
    return best.pieces if isinstance(best, BestDocuments) else {}


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
