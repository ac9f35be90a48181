"""Influence by groups of training examples: sums over all rows with the same value in a column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


if TYPE_CHECKING:
    import pandas as pd


_TOGETHER = 1 << 22  # scores that are summed at once, in float64


@dataclass(eq=False, repr=False)
class GroupInfluence:
    """Queries x groups of the training set: the sums of influence over the rows of each group. In a notebook it shows
    itself as a heat map.

    Args:
        queries (`Sequence[str]`): Q texts.
        column (`str`): what groups the rows.
        groups (`Sequence`): G values of that column, in the order of their sizes, largest first; `None`: rows that
            have none.
        sums (`Tensor`): float64 (Q, G), nats per unit of example weight; positive: training on the group more lowers
            the query's loss.
        counts (`Sequence[int]`): G, how many rows were summed, of all queries together where only those that are shown
            are.
        whole (`bool`): whether all rows were summed, or those that a result shows.

    Example:

    ```python
    index.influence_by(model, queries, "source").to_pandas()
    ```
    """

    queries: Sequence[str]
    column: str
    groups: Sequence[Any]
    sums: Tensor
    counts: Sequence[int]
    whole: bool

    def __repr__(self) -> str:
        return str(self.to_pandas())

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each query, named by its text, and a column for each group."""
        import pandas as pd

        columns = pd.Index(self.groups, name=self.column, dtype=object)
        return pd.DataFrame(self.sums.numpy(), index=pd.Index(self.queries, name="query"), columns=columns)

    def plot(self) -> Any:
        """The heat map as a `matplotlib.figure.Figure`; needs matplotlib."""
        from .plots import plot_groups

        return plot_groups(self.column, self.groups, self.queries, self.sums.tolist())

    def _repr_html_(self) -> str:
        from .heat_maps import heat_map_html

        return heat_map_html(self.column, self.groups, self.queries, self.sums.tolist())


def group_influence(queries: Sequence[str], scores: Tensor, values: Sequence[Any], column: str) -> GroupInfluence:
    """Of all scores, the sums over the rows with the same value.

    Args:
        queries (`Sequence[str]`): Q texts.
        scores (`Tensor`): (Q, N), or (Q, T, N) of tokens, whose sum counts.
        values (`Sequence`): N values; `None`: none.
        column (`str`): what they are.
    """
    groups, numbers, counts = _grouped(values)
    sums = torch.zeros(len(queries), len(groups), dtype=torch.float64)
    step = max(1, _TOGETHER // max(1, scores[..., :1].numel()))
    for start in range(0, len(values), step):
        block = scores[..., start : start + step].double()
        sums.index_add_(1, numbers[start : start + step], block.nansum(dim=1) if block.dim() == 3 else block)
    return GroupInfluence(list(queries), column, groups, sums, counts, whole=True)


def shown_influence(queries: Sequence[str], pairs: Sequence[tuple[int, float, Any]], column: str) -> GroupInfluence:
    """Of scores that are shown, the sums over the rows with the same value.

    Args:
        queries (`Sequence[str]`): Q texts.
        pairs (`Sequence[tuple[int, float, Any]]`): query, score, and the row's value.
        column (`str`): what that is.
    """
    groups, numbers, counts = _grouped([value for *_, value in pairs])
    sums = torch.zeros(len(queries), len(groups), dtype=torch.float64)
    asked = torch.tensor([query for query, *_ in pairs], dtype=torch.int64)
    scores = torch.tensor([score for _, score, _ in pairs], dtype=torch.float64)
    sums.index_put_((asked, numbers), scores, accumulate=True)
    return GroupInfluence(list(queries), column, groups, sums, counts, whole=False)


def _grouped(values: Sequence[Any]) -> tuple[list[Any], Tensor, list[int]]:
    """The groups, largest first; of each value the number of its group, int64 (N,); and how many each has."""
    counts: dict[tuple[type, Any], int] = {}
    keys = [(type(value), value) for value in values]  # True is not 1 here
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    order = sorted(counts, key=lambda key: -counts[key])
    place = {key: number for number, key in enumerate(order)}
    numbers = torch.tensor([place[key] for key in keys], dtype=torch.int64)
    return [value for _, value in order], numbers, [counts[key] for key in order]
