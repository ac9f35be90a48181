"""`docs/pages.md`: its blocks run, and what it says of a page is there."""

import re
from pathlib import Path

from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.reports import page


TEXT = (Path(__file__).resolve().parents[2] / "docs" / "pages.md").read_text(encoding="utf-8")


def test_its_blocks_make_a_page_and_a_picture(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    model, rows = make_gpt2(), make_rows(20)
    rows = rows.map(lambda row: {"source": "news", "text": " ".join(map(str, row["input_ids"]))})
    index = InfluenceIndex.build(model, rows, "my-index", config=plain_config(), processing_class=tokenizer)
    names = {"index": index, "model": model, "queries": [("1 2 3", " 4 5"), ("6 7", " 8")]}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE):
        exec(block, names)
    html = Path("attribution.html").read_text(encoding="utf-8")
    for part in (
        "lf-completion",
        "Opponents",
        "lf-histogram",
        " sd</small>",
        "lf-strip",
        "lf-answer",
        "self-influence",
    ):
        assert part in html, part
    assert Path("attribution.png").stat().st_size > 10_000


def test_its_numbers_are_those_of_the_code():
    assert f"2 to {page._MOST_GROUPS} values" in TEXT and f"the first {page._IN_NOTEBOOK} queries" in TEXT
    assert page._MOST_MAPS == 3 and page._ROW_BYTES == 500_000 and page._MOST == 20_000
