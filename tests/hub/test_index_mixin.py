"""An index lives on the Hub: push it here, load it there, or read only what a query needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import IndexFormatError
from lorif_hf.storage.layout import CURVATURE


REPO = "user/my-index"
CONFIG = plain_config(projection_factor=2, shard_size=2)


@pytest.fixture
def pushed(hub, tmp_path):
    """An index of 40 rows in 20 shards, built here and pushed; returns it and two queries' scores."""
    model, rows = make_gpt2(), make_rows(40)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=CONFIG)
    index.push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    return index, index.scores(model, rows.select([3, 17]))


LOAD_IN_A_FRESH_PROCESS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceIndex
index = InfluenceIndex.from_pretrained({repo!r}, streaming={streaming})
scores = index.scores(make_gpt2(), make_rows(40).select([3, 17]))
result = index.attribute(make_gpt2(), make_rows(40).select([3]), top_k=2)
torch.save([scores, index.commit, result.commit, result.to_list()[0]["example_id"]], sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_fresh_process_with_an_empty_cache_gets_the_same_scores_bit_for_bit(hub, pushed, tmp_path, streaming):
    _, expected = pushed
    script = LOAD_IN_A_FRESH_PROCESS.format(
        tests=str(Path(__file__).parents[1] / "support"), repo=REPO, streaming=streaming
    )
    command = [sys.executable, "-c", script, str(tmp_path / "found.pt")]
    subprocess.run(command, check=True, env=hub.environment(tmp_path / "home"), timeout=300)
    scores, commit, resolved, name = torch.load(tmp_path / "found.pt")
    assert torch.equal(scores, expected)
    assert commit == resolved == hub.commits(REPO, "dataset")[0].oid
    assert name == "row-3"


def test_streaming_reads_the_asked_modules_bytes_and_little_more(hub, tmp_path):
    """20 shards of 100 rows, 2 of 8 modules: at most 1.1 times their tensors, counted by the server."""
    model, rows = make_gpt2(width=48), make_rows(2000)
    config = plain_config(projection_factor=1, factor_rank=2, curvature_rank=4, shard_size=100)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config, batch_size=64)
    index.push_to_hub(REPO, token=hub.token)
    streamed = InfluenceIndex.from_pretrained(REPO, streaming=True)
    hub.reset_log()
    asked = ["h.0.mlp.c_fc", "h.1.mlp.c_proj"]
    result = streamed.attribute(model, rows.select([5]), top_k=10, modules=asked)
    chosen = [module for module in index.manifest.modules if module.name.endswith(tuple(asked))]
    assert len(chosen) == 2 and len(index.manifest.shards) == 20
    wanted = sum(2 * 2 * (module.d1 + module.d2) for module in chosen) * len(index)
    served = hub.bytes_served(".safetensors") - hub.bytes_served(CURVATURE)
    print(f"served {served} bytes of factors, the tensors hold {wanted}: {served / wanted:.3f} times")
    assert wanted <= served <= 1.1 * wanted
    local = index.attribute(model, rows.select([5]), top_k=10, modules=asked)
    assert torch.equal(result.indices, local.indices) and torch.equal(result.scores, local.scores)


STREAM_UNDER_A_MEMORY_LIMIT = """
import sys
sys.path.insert(0, {tests!r})
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceIndex
model, rows = make_gpt2(width=48), make_rows(2)
index = InfluenceIndex.from_pretrained({repo!r}, streaming=True)
few = index.select(range(20))
few.attribute(model, rows.select([0]), top_k=10, modules={modules})   # imports, the client and its buffers

def kibibytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

open("/proc/self/clear_refs", "w").write("5")   # the peak counts from here
before = kibibytes("VmRSS")
index.attribute(model, rows.select([0]), top_k=10, modules={modules})
print(1024 * (kibibytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own peak of memory")
def test_streaming_holds_less_than_two_shards_in_memory(hub, tmp_path):
    """20 shards of 10 MB each; two modules of eight are asked for."""
    model, rows = make_gpt2(width=48), make_rows(1)
    many = rows.select([0] * 20).map(lambda row, i: {"example_id": str(i)}, with_indices=True)
    config = plain_config(projection_factor=1, factor_rank=48, curvature_rank=2, shard_size=1, dtype="float32")
    index = InfluenceIndex.build(model, many, tmp_path / "index", config=config)
    _swell(index.path, times=50)
    swollen = InfluenceIndex.from_pretrained(index.path)
    swollen.push_to_hub(REPO, token=hub.token)
    shard = swollen.manifest.shards[0].bytes
    assert len(swollen.manifest.shards) == 20 and shard > 10e6
    modules = ["h.0.mlp.c_fc", "h.1.mlp.c_proj"]
    script = STREAM_UNDER_A_MEMORY_LIMIT.format(
        tests=str(Path(__file__).parents[1] / "support"), repo=REPO, modules=modules
    )
    command = [sys.executable, "-c", script]
    # What is held counts, not what the allocator keeps of freed buffers: it gives each of them back at once.
    environment = {**hub.environment(tmp_path / "home"), "MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=300)
    grown = int(ran.stdout.split()[-1])
    print(f"peak memory grew by {grown / shard:.2f} shards of {shard / 1e6:.1f} MB")
    assert 0 < grown < 2 * shard


def _swell(folder, times):
    """Repeat each shard's row `times` times, in place: a large index without a large recording."""
    from lorif_hf.storage.examples import write_examples
    from lorif_hf.storage.files import TensorFile, file_entry, header_sha256, write_tensors
    from lorif_hf.storage.layout import Manifest, signed

    manifest = json.loads((folder / "influence_config.json").read_text())
    old = Manifest.from_json((folder / "influence_config.json").read_text())
    for number, shard in enumerate(old.shards):
        file = TensorFile(folder, shard)
        tensors = {name: file.read(name).clone().repeat(times, 1, 1) for name in file.spans}
        write_tensors(folder / shard.file, tensors)
        rows = range(number * times, (number + 1) * times)
        nothing = {"example_id": [None] * times, "text": [None] * times}
        columns = {"num_tokens": [1] * times, "loss": [0.0] * times, "self_influence": [0.0] * times}
        write_examples(folder / old.examples[number].file, {"row": rows, **nothing, **columns})
        place = {"start": rows.start, "rows": times}
        for table, extra in (
            ("shards", {"header_sha256": header_sha256(folder / shard.file)}),
            ("examples", {}),
        ):
            entry = file_entry(folder, manifest[table][number]["file"])
            manifest[table][number].update(bytes=entry.bytes, sha256=entry.sha256, **place, **extra)
    manifest["num_examples"] = times * len(old.shards)
    (folder / "influence_config.json").write_text(signed(json.dumps(manifest)))


def test_streaming_downloads_the_manifest_and_with_a_query_of_all_layers_the_curvature(hub, pushed, tmp_path):
    _, expected = pushed
    # A cache of its own: what other tests have read of the same curvature is not fetched again.
    streamed = InfluenceIndex.from_pretrained(REPO, streaming=True, cache_dir=tmp_path / "cache")

    def kept():
        files = (path for path in streamed.path.rglob("*") if path.is_file())
        return sorted(path.relative_to(streamed.path).as_posix() for path in files)

    assert kept() == ["influence_config.json"]
    assert torch.equal(streamed.scores(make_gpt2(), make_rows(40).select([3, 17])), expected)
    assert kept() == [CURVATURE, "influence_config.json"]


def test_selected_rows_read_only_their_bytes(hub, pushed):
    index, expected = pushed
    streamed = InfluenceIndex.from_pretrained(REPO, streaming=True)
    hub.reset_log()
    rows = [31, 4, 5, 30, 4]
    scores = streamed.select(rows).scores(make_gpt2(), make_rows(40).select([3, 17]))
    assert torch.equal(scores, expected[:, [4, 5, 30, 31]])
    touched = {request.path_in_repo for request in hub.requests if request.range}
    assert touched == {index.manifest.shards[2].file, index.manifest.shards[15].file}
    result = index.select(rows).attribute(make_gpt2(), make_rows(40).select([5]), top_k=9)
    assert result.indices.shape == (1, 4) and int(result.indices[0, 0]) == 5
    assert torch.equal(index.select([7]).self_influence(), index.self_influence()[[7]])


def test_load_dataset_gives_the_example_table(hub, pushed, tmp_path):
    index, _ = pushed
    table = load_dataset(REPO, split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["row", "example_id", "text", "num_tokens", "loss", "self_influence"]
    assert table.to_list() == index.examples(list(range(40)))


def test_the_card_says_what_the_index_is_and_validates(hub, pushed):
    card = DatasetCard(hub.files(REPO, "dataset")["README.md"].decode())
    card.validate(repo_type="dataset")
    assert {"lorif", "influence-functions", "training-data-attribution"} <= set(card.data.tags)
    assert card.data.configs[0]["data_files"][0]["path"] == "data/*.parquet"
    assert f'InfluenceIndex.from_pretrained("{REPO}")' in card.text


def test_branches_tags_and_commits_are_versions(hub, pushed, tmp_path):
    _, expected = pushed
    first = hub.commits(REPO, "dataset")[0].oid
    HfApi(token=hub.token).create_tag(REPO, tag="v1", repo_type="dataset")
    rows = make_rows(12, seed=4)
    second = InfluenceIndex.build(make_gpt2(), rows, tmp_path / "second", config=CONFIG)
    second.push_to_hub(REPO, token=hub.token, revision="next")
    assert len(InfluenceIndex.from_pretrained(REPO)) == 40
    loaded = InfluenceIndex.from_pretrained(REPO, revision="next")
    assert len(loaded) == 12 and loaded.commit == hub.commits(REPO, "dataset", "next")[0].oid
    second.push_to_hub(REPO, token=hub.token)
    assert len(InfluenceIndex.from_pretrained(REPO)) == 12
    for revision in ("v1", first):
        old = InfluenceIndex.from_pretrained(REPO, revision=revision)
        assert old.commit == first
        assert torch.equal(old.scores(make_gpt2(), make_rows(40).select([3, 17])), expected)


def test_an_index_of_a_newer_format_says_what_to_install(hub, pushed):
    manifest = json.loads(hub.files(REPO, "dataset")["influence_config.json"])
    manifest["format_version"] = "2.1"
    HfApi(token=hub.token).upload_file(
        path_or_fileobj=json.dumps(manifest).encode(),
        path_in_repo="influence_config.json",
        repo_id=REPO,
        repo_type="dataset",
    )
    with pytest.raises(
        IndexFormatError, match=r'format version 2.1; .* Install a newer one: pip install "lorif-hf>=2.0"'
    ):
        InfluenceIndex.from_pretrained(REPO)
    assert len(InfluenceIndex.from_pretrained(REPO, revision="lorif-format-1")) == 40


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "../nowhere"])
def test_a_path_that_is_no_repo_id_is_not_asked_of_the_hub(hub, path):
    with pytest.raises(
        IndexFormatError, match="does not exist: expected a folder with influence_config.json, or a repo"
    ):
        InfluenceIndex.from_pretrained(path)
    assert hub.requests == []
