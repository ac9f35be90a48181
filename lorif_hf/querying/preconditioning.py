"""Q~ = H^-1 G~_q: what is scored against the stored gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..algebra.devices import on_cpu
from ..algebra.factors import factorize, reconstruct
from ..algebra.matrices import LowRankMatrices, Matrices, dense
from ..algebra.scoring import QueryGroup
from ..algebra.thin_queries import compress, joined, widest_rank
from ..algebra.token_factors import thin_groups, token_counts
from ..storage.layout import ModuleEntry
from .queried_index import QueriedIndex


_WHOLE_QUERIES = 1 << 26  # bytes of a layer's queries up to which time alone decides how they are held


class Preconditioner:
    """Q~ = H^-1 G~_q of each layer.

    Whitened gradients already are what the Kronecker curvature needs, and have the rank of the query's tokens: they
    are held as thin factors from the start. H^-1 of kept eigenpairs fills a gradient up.

    Args:
        index (`QueriedIndex`): the index.
        scored (`Sequence[ModuleEntry]`): the layers.
        queries (`int`): how many come.
        device (`torch.device`, *optional*): where they are scored; by default the CPU.
    """

    def __init__(
        self,
        index: QueriedIndex,
        scored: Sequence[ModuleEntry],
        queries: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ):
        self.index, self.scored, self.queries, self.device = index, scored, queries, device
        self._groups: dict[str, list[QueryGroup]] = {entry.name: [] for entry in scored}

    def add(self, gradients: dict[str, Matrices], query_ids: Tensor, tokens: Sequence[int]) -> None:
        """Take in the whitened gradients (B, d1, d2) of a batch of queries, by layer, and how many tokens each query
        has (0: none that are known)."""
        index = self.index
        cut = index.config.factor_rank if index.config.factorize_query else None
        pairs = index.codec.pairs if index.curvature.keeps_rank else None
        thin: dict[ModuleEntry, LowRankMatrices] = {}
        formed: dict[ModuleEntry, Tensor] = {}
        for entry in self.scored:
            made = gradients[entry.name]
            if pairs is not None and cut is None and isinstance(made, LowRankMatrices):
                thin[entry] = made
            else:
                formed[entry] = dense(made)
        made_thin = {}
        for (entry, product), counts in zip(thin.items(), token_counts(list(thin.values())), strict=True):
            widest = widest_rank(pairs or 1, entry.d1, entry.d2, self.queries)
            made_thin[entry] = thin_groups(product, counts, query_ids, widest)
        for entry, groups in self._placed(made_thin).items():
            self._groups[entry.name] += groups
        for entry, gradient in zip(formed, on_cpu(list(formed.values())), strict=True):
            whole = gradient if cut is None else reconstruct(*factorize(gradient, min(cut, entry.d1, entry.d2)))
            if pairs is None:
                self._groups[entry.name].append(QueryGroup(query_ids, whole))
                continue
            # Queries that fill the memory are held thin also where that takes longer.
            examples = index.count if 4 * self.queries * entry.d1 * entry.d2 <= _WHOLE_QUERIES else math.inf
            widest = widest_rank(pairs, entry.d1, entry.d2, self.queries, examples)
            self._groups[entry.name] += compress(whole, query_ids, widest, [count or widest for count in tokens])

    def _placed(self, groups: dict[ModuleEntry, list[QueryGroup]]) -> dict[ModuleEntry, list[QueryGroup]]:
        """Groups of queries where they are scored: on the CPU, all at once, or on the device."""
        sides = [side for of in groups.values() for g in of for side in (g.left, g.right) if side is not None]
        placed = iter(on_cpu(sides) if self.device.type == "cpu" else [side.to(self.device) for side in sides])
        return {
            entry: [QueryGroup(g.query_ids, next(placed), None if g.right is None else next(placed)) for g in of]
            for entry, of in groups.items()
        }

    def groups(self) -> dict[str, list[QueryGroup]]:
        """Of all queries, by layer."""
        held = {entry: self._solved(self._groups.pop(entry.name), entry) for entry in self.scored}
        return {entry.name: joined(groups) for entry, groups in self._placed(held).items()}

    def _solved(self, groups: list[QueryGroup], entry: ModuleEntry) -> list[QueryGroup]:
        curvature = self.index.curvature
        if curvature.keeps_rank:
            return groups
        tensors = curvature.load(self.index.reader.curvature(entry), entry)
        return [QueryGroup(group.query_ids, curvature.precondition(group.left, tensors)) for group in joined(groups)]
