"""`docs/querying.md` is one script: its blocks run from top to bottom, and what it says of them holds."""

import importlib
import re
from pathlib import Path

import pytest

from lorif_hf.tasks.measures import MEASURES


PAGE = Path(__file__).resolve().parents[2] / "docs" / "querying.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's blocks as a module of their own, run in an empty folder."""
    folder = tmp_path_factory.mktemp("querying")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    (folder / "querying_page.py").write_text("\n\n".join(blocks), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield importlib.import_module("querying_page")


def test_the_blocks_run_and_hold_what_they_assert(page):
    assert len(page.index) == 4 and page.by_token.tokens == [["of", "Italy"]]
    assert page.why.queries[0].splitlines()[1] == "chosen: France </s>"


def test_every_measure_has_its_line():
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r'^\| `"(\w+)"` \|', text, re.MULTILINE)) == set(MEASURES)
