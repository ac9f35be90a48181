"""What a user of the running app sees, in headless Chromium."""

import time
from pathlib import Path

import chromium
import pytest
from app_rows import HOSTILE
from chromium import Chromium


pytestmark = pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING))

LEGIBLE = (Path(__file__).parents[1] / "support" / "legible.js").read_text(encoding="utf-8")
SETTINGS = [(375, False), (375, True), (1280, False), (1280, True)]


@pytest.fixture(scope="module")
def browser():
    with Chromium() as started:
        yield started


@pytest.fixture
def open_app(browser, app):
    """The app in a window, ready to be typed in."""

    def opened(width=1280, dark=False):
        browser.open(app.local_url, width=width, dark=dark)
        there(browser, "#lorif-prompt textarea")
        there(browser, "#lorif-ask")
        return browser

    return opened


def there(browser, selector):
    browser.wait_for(f"!!document.querySelector({selector!r})", 60)


def unreadable(browser, seconds=15):
    """What cannot be read, once Gradio has faded it in."""
    end = time.monotonic() + seconds
    while (problems := browser.evaluate(f"({LEGIBLE})(document.body)")) and time.monotonic() < end:
        time.sleep(0.3)
    return problems


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).innerText")


def ask(browser, prompt):
    browser.evaluate("document.querySelector('#lorif-prompt textarea').focus()")
    browser.type(prompt)
    browser.evaluate("document.querySelector('#lorif-ask').click()")


def ranked(browser):
    """Wait for the last thing that an answer brings: its downloads."""
    browser.wait_for("[...document.querySelectorAll('button, a')].some(button => button.innerText == 'JSON')", 60)
    return text(browser, "#lorif-ranking")


def go_to(browser, tab):
    browser.evaluate(f"[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText == {tab!r}).click()")


@pytest.mark.parametrize("width, dark", SETTINGS)
def test_a_typed_question_is_answered_with_rows_that_can_be_read(open_app, questions, width, dark):
    browser = open_app(width, dark)
    ask(browser, "5 9 14")
    shown = ranked(browser)
    assert questions.answer("5 9 14").text.strip() in text(browser, "#lorif-answer")
    assert "5 9 14" in shown and "Proponents" in shown and "row 1" in shown
    assert unreadable(browser) == [] and browser.errors == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    go_to(browser, "Self-influence")
    browser.wait_for("document.querySelectorAll('.lorif-suspects details').length == 20", 60)
    browser.evaluate("document.querySelectorAll('.lorif-suspects details')[2].open = true")
    assert unreadable(browser) == [] and browser.errors == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_no_text_of_a_row_is_obeyed(open_app):
    """Neither HTML, nor what Gradio's own templates look for; an alert would stop the browser here."""
    browser = open_app()
    ask(browser, "5 9 14")
    shown = ranked(browser)
    assert HOSTILE.partition("\u202e")[0].strip() in shown and "U+202E" in shown
    assert browser.evaluate("document.querySelectorAll('#lorif-ranking img').length") == 0
    assert browser.errors == []


def test_a_long_row_is_shown_in_full_when_it_is_clicked(open_app):
    browser = open_app()
    ask(browser, "5 9 14")
    assert "and its end" not in ranked(browser)
    browser.evaluate("document.querySelector('#lorif-ranking .lf-more').click()")
    assert "and its end" in text(browser, "#lorif-ranking")
    go_to(browser, "Row")
    there(browser, "#lorif-row-number input")
    browser.evaluate("document.querySelector('#lorif-row-number input').focus()")
    browser.evaluate("document.querySelector('#lorif-row-number input').select()")
    browser.type("5")
    browser.evaluate("document.querySelector('#lorif-row-show').click()")
    browser.wait_for("document.querySelector('#lorif-row').innerText.includes('Row 5')")
    assert "and its end" in text(browser, "#lorif-row") and "group 2" in text(browser, "#lorif-row")


def test_a_mistake_is_told_and_the_app_goes_on(open_app):
    browser = open_app()
    browser.evaluate("document.querySelector('#lorif-ask').click()")
    browser.wait_for("document.body.innerText.includes('There is nothing to ask: type a prompt.')")
    assert "Traceback" not in browser.evaluate("document.body.innerText")
    ask(browser, "5 9 14")
    assert "Proponents" in ranked(browser)


def test_groups_are_summed_on_demand(open_app):
    browser = open_app()
    ask(browser, "5 9 14")
    ranked(browser)
    browser.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText.startsWith('Groups')).click()")
    browser.wait_for("[...document.querySelectorAll('button')].some(b => b.innerText == 'Sum up')")
    browser.evaluate("[...document.querySelectorAll('button')].find(b => b.innerText == 'Sum up').click()")
    browser.wait_for("document.querySelector('#lorif-groups')?.innerText.includes('group 2')", 60)
    assert unreadable(browser) == [] and browser.errors == []


def test_a_file_of_queries_is_answered(open_app, tmp_path):
    (tmp_path / "queries.txt").write_text("5 9 14\n30 2\n", encoding="utf-8")
    browser = open_app(375)
    go_to(browser, "File")
    there(browser, "#lorif-file input[type=file]")
    document = browser.send("DOM.getDocument")["root"]["nodeId"]
    field = browser.send("DOM.querySelector", nodeId=document, selector="#lorif-file input[type=file]")["nodeId"]
    browser.send("DOM.setFileInputFiles", files=[str(tmp_path / "queries.txt")], nodeId=field)
    browser.wait_for("document.querySelector('#lorif-file').innerText.includes('queries')")
    browser.evaluate("document.querySelector('#lorif-ask-all').click()")
    browser.wait_for("document.querySelector('#lorif-rankings').innerText.includes('30 2')", 60)
    assert "5 9 14" in text(browser, "#lorif-rankings")
    assert unreadable(browser) == [] and browser.errors == []
