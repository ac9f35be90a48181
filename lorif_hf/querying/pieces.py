"""Documents that packing cut into pieces, ranked whole."""

import numpy as np
import torch
from torch import Tensor

from .ranked import RankedScores, RunningRanking


def best_documents(
    scores: Tensor, rows: Tensor, documents: np.ndarray, k: int, largest: bool = True, opponents: int = 0
) -> RankedScores:
    """Rank documents by the sum of their pieces' scores; ties go to the document whose first piece comes first. Each
    is named by its best piece, of opponents its worst.

    Args:
        scores (`Tensor`): (Q, n) of some rows.
        rows (`Tensor`): int64 (n,), ascending: which rows.
        documents (`np.ndarray`): (n,), the document that each is a piece of; NaN: it is a document of its own.
        k (`int`): how many.
        largest (`bool`, *optional*, defaults to `True`): proponents, else opponents.
        opponents (`int`, *optional*, defaults to 0): so many from the other end beside them.
    """
    own = np.where(np.isnan(documents), -1 - np.arange(len(documents)), documents)
    _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
    by_place = np.argsort(first)
    number_of = np.empty_like(by_place)
    number_of[by_place] = np.arange(len(by_place))
    numbers = torch.from_numpy(number_of[inverse])
    sums = torch.zeros(len(scores), len(first), dtype=torch.float64).index_add_(1, numbers, scores.double())
    ranking = RunningRanking(len(sums), k, largest, opponents)
    ranking.update(sums, torch.arange(sums.shape[1]))
    ranked = ranking.ranked()
    indices, pieces = _named(scores, rows, numbers, ranked.indices, largest)
    opponent_scores, opponent_indices = ranked.opponent_scores, ranked.opponent_indices
    if opponent_scores is not None and opponent_indices is not None:
        opponent_indices, others = _named(scores, rows, numbers, opponent_indices, not largest)
        opponent_scores, pieces = opponent_scores.to(scores.dtype), {**others, **pieces}
    lowest = opponent_scores, opponent_indices
    return RankedScores(ranked.scores.to(scores.dtype), indices, ranked.spreads, *lowest, pieces)


def _named(
    scores: Tensor, rows: Tensor, numbers: Tensor, order: Tensor, largest: bool
) -> tuple[Tensor, dict[int, list[int]]]:
    """The row of the best piece of each document, int64 (Q, k), and by such a row those of all its pieces."""
    members = {int(number): (numbers == number).nonzero()[:, 0] for number in order.unique()}
    indices, pieces = torch.empty_like(order), {}
    for query, ranked in enumerate(order.tolist()):
        for rank, number in enumerate(ranked):
            held = scores[query, members[number]]
            best = int(rows[members[number][int(held.argmax() if largest else held.argmin())]])
            indices[query, rank], pieces[best] = best, rows[members[number]].tolist()
    return indices, pieces
