"""Answers and rows as HTML: nothing of a text is obeyed."""

import re

import pytest
from app_rows import HOSTILE

from lorif_hf.app.answers import Answer
from lorif_hf.app.shown import about_html, answer_html, groups_html, ranking_html, row_html, suspects_html


ROW = {"row": 3, "example_id": HOSTILE, "text": HOSTILE * 3, "num_tokens": 6, "loss": 1.25, "self_influence": 0.5}


@pytest.mark.parametrize(
    "html",
    [
        answer_html(Answer(HOSTILE, 0.75)),
        row_html({**ROW, HOSTILE: HOSTILE}),
        suspects_html([{"rank": 1, **ROW}], 24),
    ],
    ids=["answer", "row", "suspects"],
)
def test_a_hostile_text_is_shown_and_not_obeyed(html):
    assert "<img" not in html and "&lt;img" in html
    assert "\u202e" not in html and "\x07" not in html and "U+202E" in html and "U+0007" in html


def test_an_answer_says_how_it_came_about():
    assert answer_html(None) == ""
    assert "with probability 0.750" in answer_html(Answer("good", 0.75))
    assert "cut at the longest answer" in answer_html(Answer("good", finished=False))
    assert "cut" not in answer_html(Answer("good"))


def test_a_row_in_full_has_all_of_its_text_and_columns():
    text = "word " * 50_000
    html = row_html({**ROW, "text": text, "source": "group 1", "start": None})
    assert text in html and "group 1" in html and "start" not in html and "1.25" in html
    assert "no text of this row" in row_html({**ROW, "text": None})


def test_a_list_of_rows_shows_the_start_of_long_texts():
    html = suspects_html([{"rank": 1, **ROW, "text": "word " * 50_000}], 24)
    assert len(html) < 30_000 and re.search(r"[\d,]+ characters more are left out here", html)


def test_the_head_says_what_is_asked(questions):
    html = about_html(questions)
    assert "24 rows" in html and "GPT2LMHeadModel" in html and "index" in html


def test_results_show_themselves():
    class Shown:
        def _repr_html_(self):
            return "<p>shown</p>"

    assert ranking_html(Shown()) == groups_html(Shown()) == "<p>shown</p>"
