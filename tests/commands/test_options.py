"""What several commands share."""

from terminal import REPO

from lorif_hf import InfluenceIndex
from lorif_hf.commands.options import loaded_index
from lorif_hf.hub.store import StreamingStore


def test_an_index_on_the_hub_is_read_where_a_query_needs_it(hub, saved):
    InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token, private=True)
    assert isinstance(loaded_index(REPO, None, hub.token)._store, StreamingStore)
    assert loaded_index(str(saved / "index"), None, None).path == saved / "index"
