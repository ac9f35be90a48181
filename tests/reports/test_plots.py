"""Pictures of a result: a panel for each query, readable whatever the texts."""

import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from results import HOSTILE, SCRIPTS, plain_result, rich_result, token_result

from lorif_hf.reports.plots import plot_groups


def draw(figure):
    """As a PNG would be: laid out and drawn."""
    FigureCanvasAgg(figure).draw()


def test_a_panel_for_each_query_and_a_bar_for_each_row():
    figure = plain_result().plot()
    assert len(figure.axes) == 2
    assert [bar.get_width() for bar in figure.axes[0].patches] == [3.0, 1.0, -2.0]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()][:2] == ["[1]  text 1", "[7]  text 7"]
    draw(figure)  # hostile text must not be read as a formula


def test_opponents_come_below_the_proponents():
    figure = rich_result(queries=1, k=3, opponents=2).plot()
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert len(widths) == 5 and widths[:3] == sorted(widths[:3], reverse=True) and max(widths[3:]) < 0
    draw(figure)


def test_a_panel_for_each_token():
    figure = token_result().plot()
    assert [len(axes.patches) for axes in figure.axes] == [2, 2, 2]
    assert figure.axes[0].get_title(loc="left").startswith("0: 'Par' of <script>")
    draw(figure)


def test_texts_and_numbers_lie_within_the_picture():
    figure = rich_result(queries=2, k=4).plot()
    draw(figure)
    frame = figure.bbox
    for axes in figure.axes:
        for text in (*axes.get_yticklabels(), *axes.texts, axes._left_title):
            box = text.get_window_extent()
            assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1, text.get_text()


def test_groups_are_a_map_with_its_sums():
    sums = [[2.0, -1.0, 0.5], [0.0, 4.0, 0.0]]
    figure = plot_groups(HOSTILE, ["news", None, SCRIPTS], ["first " * 40, SCRIPTS], sums)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["—", "news"]  # the largest first
    assert [text.get_text() for text in axes.texts] == ["-1", "+2", "+0.5", "+4", "+0", "+0"]
    draw(figure)
    draw(plot_groups("empty", [], ["q"], [[]]))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'plot\(\) needs matplotlib: pip install "lorif-hf\[plot\]"\.'):
        plain_result().plot()
