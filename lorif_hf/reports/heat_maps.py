"""Queries and groups of the training set as a table whose cells are shaded by the influence between them."""

from collections.abc import Sequence
from typing import Any

from .templating import TEMPLATES


_LEVELS = 4
_MOST_GROUPS = 30


def by_size(sums: Sequence[Sequence[float]]) -> list[int]:
    """The columns of (Q, G) sums, those that are largest, either way, first.

    Example:

    >>> by_size([[1.0, -3.0, 0.0], [1.0, 1.0, 0.5]])
    [1, 0, 2]
    """
    sizes = [sum(map(abs, column)) for column in zip(*sums, strict=True)]
    return sorted(range(len(sizes)), key=lambda group: -sizes[group])


def shown_map(column: str, groups: Sequence[Any], queries: Sequence[str], sums: Sequence[Sequence[float]]) -> dict:
    """What the template shows of a map: at most 30 groups, the largest first.

    Args:
        column (`str`): the column of the examples.
        groups (`Sequence`): G values of it; `None`: rows that have none.
        queries (`Sequence[str]`): Q texts.
        sums (`Sequence[Sequence[float]]`): (Q, G), nats per unit of example weight.
    """
    order = by_size(sums)
    largest = max((abs(value) for row in sums for value in row), default=0.0) or 1.0
    rows = []
    for group in order[:_MOST_GROUPS]:
        name = "—" if groups[group] is None else str(groups[group])
        rows.append((name, [(float(row[group]), _shade(row[group] / largest)) for row in sums]))
    return {"column": column, "queries": list(queries), "rows": rows, "left_out": max(len(order) - _MOST_GROUPS, 0)}


def heat_map_html(column: str, groups: Sequence[Any], queries: Sequence[str], sums: Sequence[Sequence[float]]) -> str:
    """The map alone, for the output of a notebook's cell; arguments as of [`shown_map`]."""
    return TEMPLATES.get_template("map.html").render(groups=shown_map(column, groups, queries, sums))


def _shade(share: float) -> str:
    level = round(_LEVELS * abs(share))
    return f"lf-{'p' if share > 0 else 'n'}{level}" if level else ""
