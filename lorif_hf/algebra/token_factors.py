"""A query's whitened gradients from its tokens: products of two thin matrices where there are few, else formed.

A layer's whitened gradient is W_in^T X^T dY W_out = (X W_in)^T (dY W_out). Of T tokens the whiteners meet T rows on
each side where they would meet d1 columns and d2 rows of the formed gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .matrices import LowRankMatrices, Matrices
from .scoring import QueryGroup


_STEP = 8  # of the number of tokens: fewer take as long, and queries of one number are scored together


class TokenFactors:
    """Whole whitened gradients from the tokens of a layer.

    Args:
        in_whitener (`Tensor` or `None`): W_in, (d1, d1); `None` stands for the identity.
        out_whitener (`Tensor` or `None`): W_out, (d2, d2).
    """

    def __init__(self, in_whitener: Tensor | None, out_whitener: Tensor | None):
        self._whiteners = in_whitener, out_whitener

    def __call__(self, inputs: Tensor, output_gradients: Tensor) -> Matrices:
        """(n, T, d1) and (n, T, d2), float32, to the gradients of n examples: low-rank ones where T vectors of each
        side are fewer numbers than d1 d2."""
        tokens, d1, d2 = inputs.shape[1], inputs.shape[2], output_gradients.shape[2]
        in_whitener, out_whitener = (None if w is None else w.to(inputs.device) for w in self._whiteners)
        self._whiteners = in_whitener, out_whitener  # brought to a device once
        rows = (0 if in_whitener is None else d1) + (0 if out_whitener is None else d2)
        squares = (0 if in_whitener is None else d1**2) + (0 if out_whitener is None else d2**2)
        if tokens * squares > d1 * d2 * rows:
            formed = inputs.mT @ output_gradients
            formed = formed if in_whitener is None else in_whitener.T @ formed
            return formed if out_whitener is None else formed @ out_whitener
        left = inputs if in_whitener is None else inputs @ in_whitener
        right = output_gradients if out_whitener is None else output_gradients @ out_whitener
        if tokens * (d1 + d2) > d1 * d2:
            return left.mT @ right
        # What is not finite in a product is seen on either side.
        return LowRankMatrices.product(left.mT, (right + 0 * left.sum(dim=2, keepdim=True)).mT)


def token_counts(matrices: Sequence[LowRankMatrices]) -> list[list[int]]:
    """Of batches of products, how many tokens of each have a gradient (padding has none). They are waited for once."""
    if not matrices:
        return []
    counts = [(product.right != 0).any(dim=1).sum(dim=1) for product in matrices]
    together = torch.cat([count.to(counts[0].device) for count in counts]).tolist()
    sizes = [len(count) for count in counts]
    return [together[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]


def thin_groups(product: LowRankMatrices, counts: Sequence[int], query_ids: Tensor, widest: int) -> list[QueryGroup]:
    """Queries held as the products that they are, without tokens that have no gradient; of more than `widest` tokens
    whole.

    Args:
        product (`LowRankMatrices`): Q~, (g, d1, d2).
        counts (`Sequence[int]`): as of [`token_counts`].
        query_ids (`Tensor`): int64 (g,), which queries these are.
        widest (`int`): the most tokens that are worth it.
    """
    length = product.right.shape[2]
    by_count: dict[int, list[int]] = {}
    for number, count in enumerate(counts):
        tokens = min(length, max(1, -(-count // _STEP)) * _STEP)
        by_count.setdefault(tokens if tokens <= widest else 0, []).append(number)
    groups = []
    for tokens, numbers in by_count.items():
        left, right, ids = product.left, product.right, query_ids
        if len(numbers) < len(counts):
            left, right, ids = left[numbers], right[numbers], query_ids[torch.tensor(numbers)]
        if not tokens:
            groups.append(QueryGroup(ids, left @ right.mT))
            continue
        if tokens < length:
            # Those with a gradient first, in their order.
            order = (right == 0).all(dim=1).to(torch.uint8).argsort(dim=1, stable=True)[:, None, :tokens]
            left, right = (side.gather(2, order.expand(-1, side.shape[1], -1)) for side in (left, right))
        groups.append(QueryGroup(ids, left.mT.contiguous(), right.mT.contiguous()))
    return groups
