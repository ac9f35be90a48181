"""Q~ = H^-1 G~_q: what is scored against the stored gradients."""

import math
from collections.abc import Sequence

from torch import Tensor

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
    """

    def __init__(self, index: QueriedIndex, scored: Sequence[ModuleEntry], queries: int):
        self.index, self.scored, self.queries = index, scored, queries
        self._groups: dict[str, list[QueryGroup]] = {entry.name: [] for entry in scored}

    def add(self, gradients: dict[str, Matrices], query_ids: Tensor, tokens: Sequence[int]) -> None:
        """Take in the whitened gradients (B, d1, d2) of a batch of queries, by layer, and how many tokens each query
        has (0: none that are known)."""
        config, pairs = self.index.config, self.index.codec.pairs
        cut = config.factor_rank if config.factorize_query else None
        thin = self.index.curvature.keeps_rank and pairs is not None
        products = {name: made for name, made in gradients.items() if thin and isinstance(made, LowRankMatrices)}
        counts = dict(zip(products, token_counts(list(products.values())), strict=True)) if cut is None else {}
        for entry in self.scored:
            made = gradients[entry.name]
            if entry.name in counts:
                assert pairs is not None and isinstance(made, LowRankMatrices)
                widest = widest_rank(pairs, entry.d1, entry.d2, self.queries)
                self._groups[entry.name] += thin_groups(made, counts[entry.name], query_ids, widest)
                continue
            gradient = dense(made).to("cpu")
            if cut is not None:
                gradient = reconstruct(*factorize(gradient, min(cut, *gradient.shape[1:])))
            if not thin:
                self._groups[entry.name].append(QueryGroup(query_ids, gradient))
                continue
            assert pairs is not None
            # Queries that fill the memory are held thin also where that takes longer.
            examples = self.index.count if 4 * self.queries * entry.d1 * entry.d2 <= _WHOLE_QUERIES else math.inf
            widest = widest_rank(pairs, entry.d1, entry.d2, self.queries, examples)
            ranks = [count or widest for count in tokens]
            self._groups[entry.name] += compress(gradient, query_ids, widest, ranks)

    def groups(self) -> dict[str, list[QueryGroup]]:
        """Of all queries, by layer."""
        return {entry.name: self._solved(joined(self._groups.pop(entry.name)), entry) for entry in self.scored}

    def _solved(self, groups: list[QueryGroup], entry: ModuleEntry) -> list[QueryGroup]:
        curvature = self.index.curvature
        if curvature.keeps_rank:
            return groups
        tensors = curvature.load(self.index.reader.curvature(entry), entry)
        return [QueryGroup(group.query_ids, curvature.precondition(group.left, tensors)) for group in groups]
