"""Pictures of an `Attribution` for papers and READMEs, by matplotlib: bars of its scores, and a map of groups."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .heat_maps import by_size
from .rankings import rankings


if TYPE_CHECKING:
    from .attribution import Attribution


_PROPONENT, _OPPONENT, _INK, _MUTED, _LINE = "#0a6b5c", "#ad3c1b", "#18211d", "#56625c", "#dbe3df"
_MAP = ["#ad3c1b", "#efab92", "#ffffff", "#8fcfbf", "#0a6b5c"]  # from opponents to proponents
# Fonts that have the letters of most languages, where they are installed; matplotlib takes each letter from the first
# that has it.
_FONTS = [
    "Noto Sans",
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Nirmala UI",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Thai",
]
_ROW, _TITLE = 0.34, 0.95  # inches: a bar, and what a panel has beside its bars
_LABEL, _HEADING = 58, 96  # characters
_MOST_GROUPS = 30


def plot_attribution(result: "Attribution") -> Any:
    """Bars of the scores with the texts of their rows, a panel for each query, or for each token of its answer.

    Args:
        result (`Attribution`): proponents come first, opponents below them.

    Returns:
        `matplotlib.figure.Figure`.
    """
    panels = [(query, ranking) for query in range(len(result)) for ranking in rankings(result, query)]
    heights = [_ROW * max(len(ranking.rows), 1) + _TITLE for _, ranking in panels] or [_TITLE]
    figure = _figure(9, sum(heights))
    from matplotlib.transforms import blended_transform_factory

    grid = figure.subplots(max(len(panels), 1), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (query, ranking) in zip(grid, panels, strict=False):
        axes.barh(
            range(len(ranking.rows)),
            ranking.scores,
            height=0.72,
            color=[_PROPONENT if score >= 0 else _OPPONENT for score in ranking.scores],
        )
        labels = [f"[{row}]  {_legible(result.examples[row].get('text') or '—', _LABEL)}" for row in ranking.rows]
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        for place, score in enumerate(ranking.scores):
            axes.annotate(
                f"{score:+.3g}",
                (score, place),
                (3 if score >= 0 else -3, 0),
                textcoords="offset points",
                ha="left" if score >= 0 else "right",
                va="center",
                fontsize=7.5,
                color=_MUTED,
            )
        axes.axvline(0, color=_MUTED, linewidth=0.8)
        title = _legible(result.queries[query], _HEADING)
        if ranking.token is not None:
            title = _legible(f"{ranking.place}: {_legible(ranking.token, 30)!r} of {title}", _HEADING)
        heading = axes.set_title(title, fontsize=9.5, loc="left", color=_INK, parse_math=False, family=_fonts())
        above = axes.transAxes + axes.titleOffsetTrans
        heading.set_transform(blended_transform_factory(figure.transFigure, above))  # not over the bars alone
        heading.set_x(0.012)
        _quiet(axes)
    for axes in grid[-1:]:
        axes.set_xlabel("score (nats per unit of example weight)", fontsize=8, color=_MUTED)
    return figure


def plot_groups(column: str, groups: Sequence[Any], queries: Sequence[str], sums: Sequence[Sequence[float]]) -> Any:
    """Queries and groups as a map of colours, with the sums in its cells: at most 30 groups, the largest first.

    Args:
        column (`str`): the column of the examples.
        groups (`Sequence`): G values of it; `None`: rows that have none.
        queries (`Sequence[str]`): Q texts.
        sums (`Sequence[Sequence[float]]`): (Q, G), nats per unit of example weight.

    Returns:
        `matplotlib.figure.Figure`.
    """
    order = by_size(sums)[:_MOST_GROUPS]
    cells = [[float(row[group]) for group in order] for row in sums]
    largest = max((abs(value) for row in cells for value in row), default=0.0) or 1.0
    names = ["—" if groups[group] is None else _legible(groups[group], 24) for group in order]
    figure = _figure(max(len(order) + 4.2, 6), 0.42 * max(len(cells), 1) + 1.7)
    axes = figure.subplots()
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("influence", _MAP)
    image = axes.imshow(cells if order else [[0.0]], cmap=colours, vmin=-largest, vmax=largest, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="left", rotation_mode="anchor", parse_math=False)
    axes.xaxis.tick_top()
    labels = [_legible(query, 44) for query in queries]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    for query, row in enumerate(cells):
        for group, value in enumerate(row):
            colour = "#ffffff" if abs(value) > 0.75 * largest else _INK
            axes.text(group, query, f"{value:+.2g}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_title(f"influence by {_legible(column, 40)}", fontsize=9.5, loc="left", color=_INK, parse_math=False)
    _quiet(axes)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, colors=_MUTED, length=0)
    bar.set_label("sum of scores (nats per unit of example weight)", fontsize=7.5, color=_MUTED)
    return figure


def _figure(width: float, height: float) -> Any:
    """An empty one, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot() needs matplotlib: pip install "lorif-hf[plot]".') from error
    return Figure(figsize=(width, height), layout="constrained")


def _quiet(axes: Any) -> None:
    """No frame, small grey ticks, and letters of every language that a font is here for."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=8, colors=_INK)
    axes.tick_params(axis="x", labelcolor=_MUTED)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_family(_fonts())


def _fonts() -> list[str]:
    """Those of the list that are installed: matplotlib warns of every other at every letter."""
    from matplotlib import font_manager

    here = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in here] or ["sans-serif"]


def _legible(value: Any, length: int) -> str:
    """One line of at most so many characters, nothing in it that turns the others."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value or "")).split())
    return line if len(line) <= length else line[: length - 1] + "…"
