"""Of a streamed index, a query of a few layers downloads the whiteners of these layers, and no others."""

import json

import pytest
import torch
from huggingface_hub import CommitOperationAdd, constants
from published import REPO, commit, queries, served
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage.layout import CURVATURE, MANIFEST, signed


LAYER = "h.1.mlp.c_fc"


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whitened") / "index"
    config = InfluenceConfig(shard_size=8, factor_rank=1)
    return InfluenceIndex.build(make_gpt2(), make_rows(24), folder, config=config)


@pytest.fixture
def streamed(hub, whitened, load, monkeypatch, tmp_path):
    """The index on the Hub, streamed, with the caches of this test alone; and a function that opens it anew."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    whitened.push_to_hub(REPO, token=hub.token)

    def opened(**options):
        index = InfluenceIndex.from_pretrained(REPO, **{"streaming": True, "cache_dir": None, **options})
        hub.reset_log()
        return index

    return opened


def scores(index, modules=None):
    return index.scores(make_gpt2(), queries(), modules=modules)


def whiteners(index, name):
    file = index._store.tensors(index.manifest.curvature)
    return sum(span.end - span.begin for part, span in file.spans.items() if part.startswith(f"{name}."))


def test_loading_reads_the_manifest_alone(hub, streamed):
    assert len(streamed()) == 24
    InfluenceIndex.from_pretrained(REPO, streaming=True)
    assert served(hub) in ([], [MANIFEST])


def test_a_query_of_a_layer_downloads_its_whiteners_alone(hub, streamed, whitened):
    index = streamed()
    asked = scores(index, [LAYER])
    assert torch.equal(asked, scores(whitened, [LAYER]))
    (module,) = (m for m in whitened.manifest.modules if m.name.endswith(LAYER))
    file = whitened._store.tensors(whitened.manifest.curvature)
    header = min(span.begin for span in file.spans.values())
    wanted, whole = header + whiteners(whitened, module.name), whitened.manifest.curvature.bytes
    print(f"{hub.bytes_served(CURVATURE)} bytes of whiteners for one layer, the file has {whole}")
    assert hub.bytes_served(CURVATURE) == wanted < whole / 2


def test_a_query_of_all_layers_downloads_the_file_once_for_all(hub, streamed, whitened):
    index = streamed()
    assert torch.equal(scores(index, [LAYER]), scores(whitened, [LAYER]))
    assert torch.equal(scores(index), scores(whitened))
    assert (index.path / CURVATURE).is_file()
    hub.reset_log()
    assert torch.equal(scores(streamed(), [LAYER]), scores(whitened, [LAYER]))
    assert hub.bytes_served(CURVATURE) == 0


def test_whiteners_are_kept_by_their_hash_for_the_next_process(hub, streamed, whitened, tmp_path):
    scores(streamed(), [LAYER])
    assert len([path for path in (tmp_path / "assets").rglob("*") if path.is_file()]) == 2
    again = streamed()
    assert torch.equal(scores(again, [LAYER]), scores(whitened, [LAYER]))
    file = whitened._store.tensors(whitened.manifest.curvature)
    assert hub.bytes_served(CURVATURE) == min(span.begin for span in file.spans.values()), "the header alone"


def test_low_rank_curvatures_are_read_by_layer_too(hub, tmp_path, pushed, load):
    index = load(streaming=True)
    hub.reset_log()
    asked = index.scores(make_gpt2(), queries(), modules=[LAYER])
    assert torch.equal(asked, pushed[0].scores(make_gpt2(), queries(), modules=[LAYER]))
    assert 0 < hub.bytes_served(CURVATURE) < pushed[0].manifest.curvature.bytes / 2


@pytest.mark.parametrize("skip", [1, 2], ids=["the header", "a tensor"])
def test_a_corrupted_byte_is_noticed(hub, streamed, skip):
    index = streamed()
    hub.faults.add(f"GET .*{CURVATURE}", "corrupt", skip=skip, offset=3)
    with pytest.raises(IndexCorruptedError) as caught:
        scores(index, [LAYER])
    assert caught.value.file == CURVATURE


def test_a_header_that_the_manifest_does_not_vouch_for_is_refused(hub, streamed, whitened):
    values = json.loads(hub.files(REPO, "dataset")[MANIFEST])
    values["curvature"]["header_sha256"] = "0" * 64
    commit(hub, CommitOperationAdd(MANIFEST, signed(json.dumps(values)).encode()))
    index = streamed()
    with pytest.raises(IndexCorruptedError, match="its header is not the one that the manifest vouches for"):
        scores(index, [LAYER])
    with pytest.raises(IndexCorruptedError, match="its header is not the one that the manifest vouches for"):
        index.verify()


def test_a_forced_download_brings_the_whole_file_again(hub, streamed):
    index = streamed(force_download=True)
    assert (index.path / CURVATURE).is_file()
