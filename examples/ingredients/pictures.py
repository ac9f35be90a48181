"""How the pictures of the examples look: one palette, few lines, readable at the width of a page."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


GREEN, RED = "#2a7f62", "#b5403a"  # proponents and opponents, as in the reports
BLUE, BROWN, GREY, DARK = "#35618f", "#a8783c", "#a3adab", "#39423f"


def figure(panels: int, height: float = 3.4, width: float = 9.0, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure with panels beside each other."""
    style = {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.subplots(1, panels, squeeze=False, **options)[0]
    return drawn, list(axes)


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
