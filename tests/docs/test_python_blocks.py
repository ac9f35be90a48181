"""The blocks of Python of every page run, from top to bottom, with what they take for granted at hand."""

from functools import partial

import pytest
from written import ROOT, pages, python_blocks

from lorif_hf import evaluation


# Pages whose blocks are a script of its own, and the test that runs it and looks at what comes out.
OWN_TEST = {
    "docs/app.md": "tests/docs/test_app.py",
    "docs/extending.md": "tests/docs/test_extending.py",
    "docs/querying.md": "tests/docs/test_querying.py",
    "docs/streams-and-checkpoints.md": "tests/docs/test_streams_and_checkpoints.py",
}
WITH_BLOCKS = [page for page, text in pages().items() if python_blocks(text)]


def test_every_page_with_a_test_of_its_own_is_read_there():
    for page, test in OWN_TEST.items():
        assert page in WITH_BLOCKS and page.rpartition("/")[2] in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in WITH_BLOCKS if page not in OWN_TEST])
def test_the_blocks_run(page, names, monkeypatch):
    monkeypatch.setattr(evaluation, "retrain", partial(evaluation.retrain, num_subsets=2, seeds=1))
    for block in python_blocks(pages()[page]):
        exec(compile(block, str(ROOT / page), "exec"), names)
