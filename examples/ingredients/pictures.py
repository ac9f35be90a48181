"""How the pictures of the examples look: one palette, few lines, readable at the width of a page."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


GREEN, RED = "#2a7f62", "#b5403a"  # proponents and opponents, as in the reports
BLUE, BROWN, GREY, DARK = "#35618f", "#a8783c", "#a3adab", "#39423f"


def figure(panels: int, height: float = 3.4, width: float = 9.0) -> tuple[Figure, list[Any]]:
    """A figure with panels beside each other."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = list(drawn.subplots(1, panels, squeeze=False)[0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def title(panel: Any, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=10.5)


def bars(panel: Any, labels: list[str], values: list[float], colours: list[str], form: str = "{:.0%}") -> None:
    """Horizontal bars, first on top, each with its value beside it."""
    panel.barh(range(len(labels)), values, color=colours, height=0.62)
    panel.set_yticks(range(len(labels)), labels)
    panel.invert_yaxis()
    panel.set_xticks([])
    panel.spines["bottom"].set_visible(False)
    most = max([*values, 1e-9])
    panel.set_xlim(0, 1.18 * most)
    for place, value in enumerate(values):
        panel.text(value + 0.02 * most, place, form.format(value), va="center")


def percent(panel: Any) -> None:
    """Both axes from 0% to 100%."""
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:.0%}")
    panel.set(xlim=(0, 1), ylim=(0, 1.02))


def save(drawn: Figure, path: Path) -> None:
    """As a PNG small enough for a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    print(f"The picture: {path}")
