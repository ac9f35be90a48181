"""Numbers and short texts of a page."""

import pytest

from lorif_hf.reports.templating import TEMPLATES, cut, line, signed


@pytest.mark.parametrize(
    "value, shown",
    [(3.0, "+3"), (-0.012345, "-0.0123"), (12345.6, "+12,346"), (-1e7, "-1e+07"), (0.0, "+0"), (1e-9, "+1e-09")],
)
def test_scores_have_signs_and_three_digits(value, shown):
    assert signed(value) == shown


def test_short_texts_are_one_line():
    assert cut("a\n\n  b", 9) == "a b" and cut("abcdef", 4) == "abc…" and cut(None, 4) == "None"
    assert line("a <b>\x07 c", 8) == "a &lt;b&gt;<span class=lf-esc>U+0007</span> c"


def test_templates_escape_by_themselves():
    assert TEMPLATES.from_string("{{ text }}").render(text="<b>") == "&lt;b&gt;"
