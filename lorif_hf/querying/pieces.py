"""Documents that packing cut into pieces, ranked whole."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class BestDocuments:
    """The k best documents of each query.

    Args:
        scores (`Tensor`): (Q, k), the sum over the pieces of each, best first.
        indices (`Tensor`): int64 (Q, k), the row of each document's best piece.
        pieces (`dict[int, list[int]]`): by such a row, the rows of all pieces of its document.
    """

    scores: Tensor
    indices: Tensor
    pieces: dict[int, list[int]]


def best_documents(scores: Tensor, rows: Tensor, documents: np.ndarray, k: int, largest: bool = True) -> BestDocuments:
    """Rank documents by the sum of their pieces' scores; ties go to the document whose first piece comes first.

    Args:
        scores (`Tensor`): (Q, n) of some rows.
        rows (`Tensor`): int64 (n,), ascending: which rows.
        documents (`np.ndarray`): (n,), the document that each is a piece of; NaN: it is a document of its own.
        k (`int`): how many.
        largest (`bool`, *optional*, defaults to `True`): proponents, else opponents.
    """
    own = np.where(np.isnan(documents), -1 - np.arange(len(documents)), documents)
    _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
    by_place = np.argsort(first)
    number_of = np.empty_like(by_place)
    number_of[by_place] = np.arange(len(by_place))
    numbers = torch.from_numpy(number_of[inverse])
    sums = torch.zeros(len(scores), len(first), dtype=torch.float64).index_add_(1, numbers, scores.double())
    order = sums.sort(dim=1, descending=largest, stable=True).indices[:, :k]
    members = {int(number): (numbers == number).nonzero()[:, 0] for number in order.unique()}
    indices, pieces = torch.empty_like(order), {}
    for query, ranked in enumerate(order.tolist()):
        for rank, number in enumerate(ranked):
            held = scores[query, members[number]]
            best = int(rows[members[number][int(held.argmax() if largest else held.argmin())]])
            indices[query, rank], pieces[best] = best, rows[members[number]].tolist()
    return BestDocuments(sums.gather(1, order).to(scores.dtype), indices, pieces)
