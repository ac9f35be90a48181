"""What happens at each button, without a browser."""

from pathlib import Path

import pytest

from lorif_hf.app.handlers import PAGE, Asked, Handlers
from lorif_hf.errors import QueryError


pytest.importorskip("gradio", reason="Gradio is not installed (pip install 'lorif-hf[app]')")
OPTIONS = (3, 2, 4, True, False, False)


@pytest.fixture(scope="module")
def handlers(questions):
    return Handlers(questions)


def test_a_question_shows_the_answer_first_and_then_its_rows(handlers, questions):
    first, second, third = list(handlers.ask("5 9 14", "", *OPTIONS, None))
    said = questions.answer("5 9 14", 4).text
    assert first[:4] == ("", "", None, None)
    assert said.strip() in second[0] and second[1] == ""
    assert third[0] == second[0] and third[2] == Asked("5 9 14", said, False)
    assert "lorif" in third[1]
    files = third[3]
    assert [button["value"] for button in third[4:7]] == files and all(button["visible"] for button in third[4:7])
    again = handlers.ask("5 9 14", "", *OPTIONS, files)
    next(again)
    assert not Path(files[0]).parent.exists(), "the files of the last question are removed"


def test_an_answer_that_is_typed_is_attributed_instead(handlers):
    *_, last = handlers.ask("5 9 14", " 20 11", *OPTIONS, None)
    assert last[0] == "" and last[2] == Asked("5 9 14", " 20 11", False)


def test_groups_are_summed_of_what_was_asked_last(handlers):
    html = handlers.groups(Asked("5 9 14", " 20 11", False), "source")
    assert all(f"group {place}" in html for place in range(3))
    for asked, column in ((None, "source"), (Asked("5 9", " 1", False), "text"), (Asked("5 9", " 1", False), None)):
        with pytest.raises(QueryError, match="ask first, then choose a column"):
            handlers.groups(asked, column)


def test_a_file_is_answered(handlers, tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("5 9 14\n30 2\n", encoding="utf-8")
    first, last = list(handlers.file(str(path), *OPTIONS, None))
    assert first[0] == "" and "lorif" in last[0] and len(last[1]) == 3
    with pytest.raises(QueryError, match="upload a .txt, .jsonl or .csv file"):
        list(handlers.file(None, *OPTIONS, None))


def test_a_row_is_shown_by_its_number(handlers):
    assert "Row 7" in handlers.row(7)
    with pytest.raises(QueryError, match="a number from 0 to 23"):
        handlers.row(None)
    with pytest.raises(QueryError, match="outside the index, which has rows 0 to 23"):
        handlers.row(24)


def test_pages_of_self_influence_end_where_the_rows_do(handlers):
    html, page = handlers.suspects_before(0)
    assert page == 0 and f"Ranks 1 to {PAGE} of 24" in html
    html, page = handlers.suspects_after(page)
    assert page == 1 and "Ranks 21 to 24 of 24" in html
    assert handlers.suspects_after(page)[1] == 1
