"""The look: nothing from elsewhere."""

import re

import pytest

from lorif_hf.app.appearance import appearance


pytest.importorskip("gradio", reason="Gradio is not installed (pip install 'lorif-hf[app]')")


def test_fonts_and_styles_come_from_nowhere_else():
    look = appearance()
    assert "http" not in look["css"] and "@import" not in look["css"]
    assert look["theme"]._stylesheets == [] and not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)", look["theme"]._get_theme_css()
    )
