"""What a codec stored, as matrices in float64, and its scores by the one fast way there is."""

import torch
from torch import Tensor

from lorif_hf.algebra.factors import reconstruct
from lorif_hf.algebra.scoring import QueryGroup, Workspace


def rebuilt(codec, parts, d1: int, d2: int) -> Tensor:
    """The stored gradients, (n, d1, d2)."""
    left, right = codec.factors(parts, d1, d2)
    return reconstruct(left.double(), None if right is None else right.double())


def fast_scores(codec, queries: Tensor, parts, d1: int, d2: int) -> Tensor:
    """Inner products of whole queries (Q, d1, d2) with the stored gradients, float32 (Q, n)."""
    scores = torch.zeros(len(queries), len(next(iter(parts.values()))))
    group = QueryGroup(torch.arange(len(queries)), queries)
    codec.add_scores(scores, [group], parts, d1, d2, Workspace())
    return scores
