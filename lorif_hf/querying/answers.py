"""What is asked, scored against every row that is asked of: the best rows of each query, or all scores."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .measure import MeasuredQueries, Measurement
from .scan import Scan, allocate, best_scores, every_score


@dataclass(frozen=True)
class BestRows:
    """The best rows of each query, or of each token of each query's answer.

    Args:
        scores (`Tensor`): float32 (Q, k), best first; of tokens (Q, T, k), NaN beyond a query's last.
        indices (`Tensor`): int64 of the same shape, the rows; -1 beyond a query's last token.
        losses (`list[float]`): what was measured of each query, nats.
    """

    scores: Tensor
    indices: Tensor
    losses: list[float]


def best_rows(asked: Measurement, k: int, largest: bool) -> BestRows:
    """The k best rows, or the k worst; of tokens, a pass over the index for every `batch_size` of them.

    Args:
        asked (`Measurement`): the queries.
        k (`int`): how many; at most N come out.
        largest (`bool`): proponents first, else opponents.
    """
    if asked.tokens is None:
        prepared = asked.whole()
        best = best_scores(_scan(asked, prepared, True), k, largest)
        return BestRows(best.scores, best.indices, prepared.losses)
    shape = (len(asked.tokens), max(map(len, asked.tokens)), min(k, asked.index.count))
    scores = torch.full(shape, math.nan)
    indices = torch.full(shape, -1)
    losses = [0.0] * len(asked.tokens)
    for number, places, prepared in asked.by_token():
        best = best_scores(_scan(asked, prepared, True), k, largest)
        scores[number, places], indices[number, places] = best.scores, best.indices
        losses[number] += sum(prepared.losses)
    return BestRows(scores, indices, losses)


def all_scores(asked: Measurement, weighted: bool, per_module: bool) -> Any:
    """Every score, float32 (Q, N); of tokens (Q, T, N), NaN beyond a query's last; or a dict of these by module.

    Args:
        asked (`Measurement`): the queries.
        weighted (`bool`): whether to multiply by the examples' weights.
        per_module (`bool`): whether to give them layer by layer instead of their sum.
    """
    names = [module.name for module in asked.scored]
    layers = (len(names),) if per_module else ()
    if asked.tokens is None:
        prepared = asked.whole()
        dense = allocate((*layers, len(prepared.losses), asked.index.count))
        every_score(_scan(asked, prepared, weighted), dense)
    else:
        dense = allocate((*layers, len(asked.tokens), max(map(len, asked.tokens)), asked.index.count))
        for number, tokens in enumerate(asked.tokens):
            dense[..., number, len(tokens) :, :] = math.nan
        for number, places, prepared in asked.by_token():
            every_score(_scan(asked, prepared, weighted), dense[..., number, places, :])
    return dict(zip(names, dense, strict=True)) if per_module else dense


def _scan(asked: Measurement, prepared: MeasuredQueries, weighted: bool) -> Scan:
    index, queries = asked.index, len(prepared.losses)
    weighted = weighted and index.config.weighted
    return Scan(queries, prepared.preconditioned, index.reader, asked.scored, index.codec, index.rows, weighted)
