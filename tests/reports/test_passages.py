"""Texts from anybody: nothing in them acts, nothing in them hides, and they take the room that they are given."""

import pytest

from lorif_hf.reports.passages import is_hidden, markup, passage, shaded


def html(text):
    return str(markup([(text, "")])[0])


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a <b> & \"c\" 'd'", "a &lt;b&gt; &amp; &#34;c&#34; &#39;d&#39;"),
        ("line\n\tnext", "line\n\tnext"),
        ("\x00", "<span class=lf-esc>U+0000</span>"),
        ("\x00" * 5000, "<span class=lf-esc>U+0000 ×5000</span>"),
        ("\r", "<span class=lf-esc>U+000D</span>"),
        ("\u202egnp", "<span class=lf-esc>U+202E</span>gnp"),
        ("a\u200bb", "a<span class=lf-esc>U+200B</span>b"),
        ("\ud800", "<span class=lf-esc>U+D800</span>"),
        ("\U000e0041", "<span class=lf-esc>U+E0041</span>"),
        ("\u2028", "<span class=lf-esc>U+2028</span>"),
        ("\ufeff", "<span class=lf-esc>U+FEFF</span>"),
        ("\u3164", "<span class=lf-esc>U+3164</span>"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),  # a joined emoji
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian
        ("a\u200cb", "a<span class=lf-esc>U+200C</span>b"),
        ("\u0600", "\u0600"),  # a sign of Arabic numbers, which has a shape
        ("naïve ΑΩ 首都", "naïve ΑΩ 首都"),
    ],
)
def test_a_text_is_shown_as_it_is_and_no_more(text, shown):
    assert html(text) == shown


def test_every_hidden_character_of_unicode_is_shown():
    """Against a list of its own: what turns the direction, ends lines, or has no width."""
    for place in (
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        0x061C,
        0x200E,
        0x200F,
        0x2060,
        0xAD,
        0x180E,
        0x2029,
    ):
        assert is_hidden(chr(place), "a"), hex(place)
    assert not [place for place in range(32, 127) if is_hidden(chr(place))]


def test_neighbours_of_a_class_are_one_element():
    assert str(markup([("a", "x"), ("b", "x"), ("c", ""), ("d", "x")])[0]) == (
        "<span class=x>ab</span>c<span class=x>d</span>"
    )


@pytest.mark.parametrize("most_bytes", [0, 1, 9, 40, 41, 500])
@pytest.mark.parametrize("unit", ["a", "<", "首", "\u202e\u202d"])
def test_a_text_takes_no_more_bytes_than_it_may(unit, most_bytes):
    runs = [(unit * 20, ""), (unit * 20, "lf-p1")]
    written, shown = markup(runs, most_bytes)
    assert len(written.encode()) <= most_bytes + len("<span class=lf-p1></span>")
    assert written.count("<span") == written.count("</span>") and shown <= 40 * len(unit)
    assert markup(runs)[1] == 40 * len(unit)


def test_shares_become_levels_of_the_largest():
    runs = shaded(["a", "b", "c", "d", "e"], [4.0, -4.0, 1.0, 0.2, -2.0])
    assert [kind for _, kind in runs] == ["lf-p4", "lf-n4", "lf-p1", "", "lf-n2"]
    assert shaded(["a", "b"], [0.0, 0.0]) == [("a", ""), ("b", "")] and shaded([], []) == []


def test_a_short_text_is_not_folded():
    short = passage([("one\r\ntwo", "")], 1000)
    assert short.preview is None and short.whole == "one\ntwo" and short.shown == short.total == 7


@pytest.mark.parametrize("text", ["word " * 200, "line\n" * 40, "x" * 2000])
def test_a_long_text_shows_its_start(text):
    long = passage([(text[:7], "lf-p1"), (text[7:], "")], 10_000)
    assert long.preview.endswith("…") and long.preview.startswith(f"<span class=lf-p1>{text[:7]}</span>")
    assert len(long.preview) < 420 and long.preview.count("\n") <= 6 and long.shown == long.total == len(text)


def test_a_long_text_may_show_another_part_of_it():
    long = passage([("x" * 1000, ""), ("end", "lf-completion")], 10_000, [("…x", ""), ("end", "lf-completion")])
    assert long.preview == "…x<span class=lf-completion>end</span>…"


def test_a_very_long_text_is_cut():
    cut = passage([("word " * 1000, "")], 600)
    assert cut.shown == 600 and cut.total == 5000 and len(cut.whole) == 600
