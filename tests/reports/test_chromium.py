"""What a reader sees: the page of a result and its table in notebooks, in headless Chromium."""

import re
from pathlib import Path

import chromium
import pytest
from chromium import Chromium
from results import plain_result, rich_result, token_result

from lorif_hf.reports.heat_maps import heat_map_html


pytestmark = pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING))

LEGIBLE = (Path(__file__).parents[1] / "support" / "legible.js").read_text(encoding="utf-8")
SETTINGS = [(375, False), (375, True), (1280, False), (1280, True)]
# What Jupyter's own style sheet says of the outputs of cells, as far as tables and headings go.
JUPYTER = """
.jp-RenderedHTMLCommon { color: #eee; font-size: 14px; }
.jp-RenderedHTMLCommon h2 { font-size: 1.8em; margin: 1em 0; color: #fff; }
.jp-RenderedHTMLCommon table { font-size: 12px; table-layout: fixed; margin-left: auto; color: #fff; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon tr {
  vertical-align: middle; padding: .5em; text-align: right;
}
.jp-RenderedHTMLCommon tbody tr:nth-child(odd) { background: #212121; }
.jp-RenderedHTMLCommon a { color: #1976d2; }
"""


@pytest.fixture(scope="module")
def browser():
    with Chromium() as started:
        yield started


@pytest.fixture(scope="module")
def rich():
    return rich_result(k=4)


@pytest.fixture(scope="module")
def page(rich, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    rich.save_html(path)
    return path


def unreadable(browser, element="document.documentElement"):
    return browser.evaluate(f"({LEGIBLE})({element})")


@pytest.mark.parametrize("width, dark", SETTINGS)
def test_every_text_of_the_page_can_be_read(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert unreadable(browser) == [] and browser.errors == []
    assert browser.evaluate("document.querySelectorAll('.lf-text').length") > 25  # there was something to read
    browser.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert unreadable(browser) == [] and browser.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_of_tokens_can_be_read_on_a_phone(browser, tmp_path, dark):
    token_result().save_html(tmp_path / "page.html")
    browser.open(tmp_path / "page.html", width=375, dark=dark)
    assert unreadable(browser) == [] and browser.errors == []


def test_it_is_seen_what_cannot_be_read(browser, tmp_path):
    """The judge of the tests above, judged."""
    texts = [
        '<p style="color: #888">grey</p>',
        '<div style="background: #111"><p style="color: #1c2321">dark</p></div>',
        '<div style="background: rgb(0 0 0 / 90%)"><p style="color: oklch(0.3 0 0)">darker</p></div>',
        '<p style="opacity: .4">faint</p>',
        '<p style="width: 0; font-size: 0">lost</p>',
        '<p style="width: 2000px">wide</p>',
        '<p style="color: #595959">well</p><p hidden>hidden</p><style>p { margin: 0 }</style>',
    ]
    (tmp_path / "page.html").write_text("<!doctype html><meta charset=utf-8>" + "".join(texts))
    browser.open(tmp_path / "page.html", width=800)
    problems = unreadable(browser)
    for word in ("grey", "dark", "darker", "faint", "lost", "wide in a window of 800"):
        assert [line for line in problems if word in line], word
    assert not [line for line in problems if "well" in line or "hidden" in line]


# The frontends say by an attribute or a class which theme they are in, whatever the system prefers.
FRONTENDS = {
    "JupyterLab": ("<body data-jp-theme-light={}>", "true", "false"),
    "VS Code": ("<body class={}>", "vscode-light", "vscode-dark"),
    "Colab": ("<html theme={}><body>", "light", "dark"),
}


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_notebook_is_as_its_frontend_is(browser, rich, tmp_path, frontend, dark):
    opening, *values = FRONTENDS[frontend]
    around = (
        f"{opening.format(values[dark])}<style>{JUPYTER}body {{ background: {'#111' if dark else '#fff'} }}</style>"
    )
    output = f"<div class=jp-RenderedHTMLCommon>{rich[3]._repr_html_()}</div>"
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{around}{output}", encoding="utf-8")
    browser.open(tmp_path / "notebook.html", width=900)
    for system in (False, True):
        browser.emulate(dark=system)
        assert unreadable(browser, "document.querySelector('.lorif')") == [] and browser.errors == []
        ground = browser.evaluate("getComputedStyle(document.querySelector('.lorif')).backgroundColor")
        assert ground == ("rgb(18, 23, 21)" if dark else "rgb(255, 255, 255)")
    for name in (".lf-example", "th.lf-score", ".lf-rank"):  # not as Jupyter has its tables
        assert browser.evaluate(f"getComputedStyle(document.querySelector('{name}')).textAlign") == "start"


@pytest.mark.parametrize("width, dark", [(375, True), (1280, False)])
def test_a_map_of_groups_can_be_read(browser, tmp_path, width, dark):
    sums = [[4.0 - group - 3 * query for group in range(14)] for query in range(8)]
    html = heat_map_html("source", [f"a group with a long name {group}" for group in range(14)], ["query"] * 8, sums)
    viewport = '<meta name=viewport content="width=device-width">'
    (tmp_path / "map.html").write_text(f"<!doctype html><meta charset=utf-8>{viewport}{html}", encoding="utf-8")
    browser.open(tmp_path / "map.html", width=width, dark=dark)
    assert unreadable(browser, "document.querySelector('.lorif')") == [] and browser.errors == []


def test_the_keyboard_reaches_the_queries_and_the_folds(browser, page):
    browser.open(page, width=1280)
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the first query"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    reached, outlined = [], []
    for _ in range(40):
        browser.press("Tab")
        reached.append(
            browser.evaluate("document.activeElement.getAttribute('href') ?? document.activeElement.className")
        )
        outlined.append(browser.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
        if reached[-1] == "lf-more":
            break
    assert reached[:3] == ["", "#q1", "#q2"] and reached[-1] == "lf-more" and set(outlined) == {"solid"}
    assert browser.evaluate("document.activeElement.getAttribute('tabindex')") is None
    height = "document.activeElement.closest('.lf-fold').getBoundingClientRect().height"
    closed = browser.evaluate(height)
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.parentElement.open") and browser.evaluate(height) > closed
    texts = "[...document.activeElement.closest('.lf-fold').querySelectorAll('.lf-text')]"
    assert (
        browser.evaluate(f"{texts}.filter(text => text.checkVisibility()).length") == 1
    )  # the whole text in place of its start


def test_a_screen_reader_gets_a_tree_that_says_what_is_what(browser, page):
    """The tree of Chromium itself; on a phone too, where the table is laid out as blocks."""
    for width in (1280, 375):
        browser.open(page, width=width)
        nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
        named = {
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
        }
        roles = [role for role, _ in named]
        assert {"main", "navigation", "banner", "contentinfo", "table", "row", "cell", "columnheader", "image"} <= set(
            roles
        )
        assert ("heading", "Which training examples made the model say this?") in named
        assert ("table", "proponents of query 1") in named and ("columnheader", "training example") in named
        assert [
            name for role, name in named if role == "image" and name.startswith("Histogram of the scores of all 400")
        ]
        assert ("link", "row 0 in the dataset viewer") in named
        assert [name for role, name in named if role == "DisclosureTriangle" and name.endswith("show all")]


def test_on_paper_it_is_light_and_whole(browser, page, tmp_path):
    browser.open(page, width=1280, dark=True)
    browser.emulate(dark=True, media="print")
    colour = browser.evaluate("getComputedStyle(document.querySelector('.lorif')).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    folded = "[...document.querySelectorAll('.lf-fold > details > .lf-text')]"
    assert browser.evaluate(f"{folded}.length > 3 && {folded}.every(text => text.getBoundingClientRect().height > 0)")
    assert browser.evaluate("[...document.querySelectorAll('.lf-more')].every(more => !more.checkVisibility())")
    assert unreadable(browser) == []
    browser.pdf(tmp_path / "page.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())) >= 4


def test_no_text_reaches_out_of_its_box(browser, tmp_path):
    """Marks that stack up without end, a word without end, an override that nobody closes."""
    result = plain_result()
    result.examples[1]["text"] = "z" + "\u0335\u0340\u0488" * 60 + " \u202eabc"
    result.examples[7]["text"] = "W" * 20_000
    result.save_html(tmp_path / "page.html")
    for width in (375, 1280):
        browser.open(tmp_path / "page.html", width=width)
        assert unreadable(browser) == [] and browser.errors == []
    assert browser.evaluate("getComputedStyle(document.querySelector('.lf-text')).overflow") == "clip"
    assert browser.evaluate("getComputedStyle(document.querySelector('.lf-text')).unicodeBidi") == "plaintext"
