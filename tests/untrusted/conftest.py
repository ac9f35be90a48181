"""An index to be tampered with, and the three ways to load it."""

import shutil

import pytest
from tampering import CONFIG, REPO, upload
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceIndex


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "index"
    InfluenceIndex.build(make_gpt2(), make_rows(6), folder, config=CONFIG)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A good index, to be tampered with."""
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(params=["folder", "hub", "streaming"])
def load(request, hub, folder, tmp_path):
    """Loads the tampered index by one of the three ways."""

    def from_pretrained():
        if request.param == "folder":
            return InfluenceIndex.from_pretrained(folder)
        upload(hub, folder)
        return InfluenceIndex.from_pretrained(
            REPO, cache_dir=tmp_path / "cache", streaming=request.param == "streaming"
        )

    from_pretrained.way = request.param
    return from_pretrained
