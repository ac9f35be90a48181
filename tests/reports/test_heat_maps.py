"""Queries and groups: largest first, shaded by their share, escaped."""

from results import HOSTILE

from lorif_hf.reports.heat_maps import by_size, heat_map_html, shown_map


def test_groups_come_by_size_whatever_their_sign():
    assert by_size([[1.0, -3.0, 0.0], [1.0, 1.0, 0.5]]) == [1, 0, 2] and by_size([]) == []


def test_cells_are_shaded_by_their_share_of_the_largest():
    shown = shown_map("source", ["news", None], ["q"], [[1.0, -4.0]])
    assert shown["rows"] == [("—", [(-4.0, "lf-n4")]), ("news", [(1.0, "lf-p1")])] and shown["left_out"] == 0


def test_only_the_largest_groups_are_shown():
    shown = shown_map("source", list(range(50)), ["q"], [[float(group) for group in range(50)]])
    assert len(shown["rows"]) == 30 and shown["rows"][0][0] == "49" and shown["left_out"] == 20
    assert "20 more groups" in heat_map_html("source", list(range(50)), ["q"], [[1.0] * 50])


def test_names_and_queries_are_escaped():
    html = heat_map_html(HOSTILE, [HOSTILE, True], [HOSTILE] * 4, [[1.0, 0.0]] * 4)
    assert "<script" not in html and "<img" not in html and "U+001B" in html and "\u202e" not in html
    assert html.count("<td") == 8 and "+1" in html
