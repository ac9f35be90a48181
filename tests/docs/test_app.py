"""The blocks of `docs/app.md`: what the first serves answers the second."""

import json
from pathlib import Path

from written import pages, python_blocks


ADDRESS = "http://127.0.0.1:7860"  # of the page; here the first port that is free


def test_the_app_of_the_page_answers(folder, served, names):
    serving, asking = python_blocks(pages()["docs/app.md"])
    assert ADDRESS in asking
    exec(serving, names)
    (app,) = served
    exec(asking.replace(ADDRESS, app.local_url.rstrip("/")), names)
    assert names["answer"] and "Proponents" in names["ranking"]
    written = {name: Path(names[name]["value"]).read_text(encoding="utf-8") for name in ("page", "table", "data")}
    assert written["page"].startswith("<!doctype html>") and "score" in written["table"]
    assert json.loads(written["data"])["queries"]
