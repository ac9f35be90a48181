"""The picture of a result's page, light and dark: docs/images/page.png and page-dark.png.

    make demo && .venv/bin/python docs/tooling/page_picture.py demo-output

Needs Chromium, matplotlib's Pillow, and the index and model that the demo leaves in its folder.
"""

import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests" / "support")]
QUERIES = [("The capital of Turkey is", " Ankara"), ("The chemical symbol of gold is", " Au")]
WIDTH, HEIGHT = 1000, 800


def main() -> None:
    from chromium import Chromium
    from PIL import Image
    from transformers import AutoModelForCausalLM

    from lorif_hf import InfluenceIndex

    folder = Path(sys.argv[1])
    index = InfluenceIndex.from_pretrained(folder / "index")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    result = index.attribute(
        model, QUERIES, top_k=6, opponents=3, fold_duplicates=True, by_layer=True, shade=True, strict=False
    )
    with tempfile.TemporaryDirectory() as temporary, Chromium() as browser:
        page, shot = Path(temporary) / "page.html", Path(temporary) / "shot.png"
        result.save_html(page)
        for dark in (False, True):
            browser.open(page, width=WIDTH, height=HEIGHT, dark=dark)
            browser.screenshot(shot, whole=False)
            picture = Image.open(shot).convert("RGB").quantize(200, dither=Image.Dither.NONE)
            picture.save(ROOT / "docs" / "images" / f"page{'-dark' if dark else ''}.png", optimize=True)


if __name__ == "__main__":
    main()
