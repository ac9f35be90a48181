"""An index on the local Hub."""

import pytest
from published import CONFIG, REPO, queries
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceIndex


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index of 24 rows in 12 shards, and the scores of two queries."""
    folder = tmp_path_factory.mktemp("built") / "index"
    index = InfluenceIndex.build(make_gpt2(), make_rows(24), folder, config=CONFIG)
    return index, index.scores(make_gpt2(), queries())


@pytest.fixture
def pushed(hub, built):
    built[0].push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    return built


@pytest.fixture
def load(tmp_path):
    """`from_pretrained` with an empty cache of this test's own."""

    def from_pretrained(repo=REPO, **options):
        return InfluenceIndex.from_pretrained(repo, **{"cache_dir": tmp_path / "cache", **options})

    return from_pretrained
