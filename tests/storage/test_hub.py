"""An index on the Hub: one commit, what is asked of the server, and everything that goes wrong on the way.

The real client against the local server; faults are the server's.
"""

import hashlib
import io
import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import (
    HubAccessError,
    HubConnectionError,
    IndexCorruptedError,
    IndexFormatError,
    IndexNotFoundError,
)
from lorif_hf.storage.hub import StreamingStore
from lorif_hf.storage.layout import CURVATURE, MANIFEST, Manifest


REPO = "user/my-index"
DATASET = {"repo_type": "dataset"}
SEVENTH = "factors/factors-00007-of-00012.safetensors"
CONFIG = InfluenceConfig(projection_factor=2, shard_size=2)


def queries():
    return make_rows(24).select([3, 17])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index of 24 rows in 12 shards, and the scores of two queries."""
    folder = tmp_path_factory.mktemp("built") / "index"
    index = InfluenceIndex.build(make_gpt2(), make_rows(24), folder, config=CONFIG, example_id="name")
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


def commit(hub, *operations):
    return HfApi(token=hub.token).create_commit(REPO, list(operations), commit_message="change", **DATASET)


def served(hub):
    """The files that were served, in the order of their requests."""
    return [r.path_in_repo for r in hub.requests if r.method == "GET" and r.path_in_repo and r.bytes_sent]


def is_right(index, expected):
    return torch.equal(index.scores(make_gpt2(), queries()), expected)


# One commit


@pytest.mark.parametrize("streaming", [False, True])
def test_branch_tag_and_commit_are_the_same_pinned_commit(hub, pushed, load, streaming):
    _, expected = pushed
    HfApi(token=hub.token).create_tag(REPO, tag="v1", **DATASET)
    sha = HfApi(token=hub.token).repo_info(REPO, **DATASET).sha
    for revision in (None, "main", "v1", sha):
        index = load(revision=revision, streaming=streaming)
        assert index.commit == sha and is_right(index, expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_push_in_between_does_not_change_what_a_loaded_index_reads(hub, pushed, load, tmp_path, streaming):
    built, expected = pushed
    index = load(streaming=streaming)
    other = InfluenceIndex.build(make_gpt2(), make_rows(24, seed=5), tmp_path / "other", config=CONFIG)
    other.push_to_hub(REPO, token=hub.token)
    assert is_right(index, expected)
    assert index.examples([3]) == built.examples([3]) != other.examples([3])
    again = load(streaming=streaming)
    assert again.commit != index.commit and not is_right(again, expected)


# What is downloaded


def test_the_manifest_comes_first_then_the_curvature_then_the_rest_each_once(hub, pushed, load):
    index = load()
    files = served(hub)
    assert files[:2] == [MANIFEST, CURVATURE]
    assert sorted(files) == sorted({MANIFEST, *(entry.file for entry in index.manifest.files)})
    assert index.path.parent.name == "snapshots" and index.path.name == index.commit
    for entry in index.manifest.files:
        assert hashlib.sha256((index.path / entry.file).read_bytes()).hexdigest() == entry.sha256


def test_a_second_load_downloads_nothing(hub, pushed, load):
    load()
    hub.reset_log()
    assert is_right(load(), pushed[1])
    assert served(hub) == []


def test_local_files_only_asks_the_hub_nothing(hub, pushed, load):
    with pytest.raises(HubConnectionError, match=r"not in the local cache .*local_files_only=True\)\. Connect, or"):
        load(local_files_only=True)
    assert hub.requests == []
    load()
    hub.reset_log()
    assert is_right(load(local_files_only=True), pushed[1])
    assert hub.requests == []


def test_local_files_only_asks_the_hub_nothing_when_streaming(hub, pushed, load):
    load()
    hub.reset_log()
    assert is_right(load(local_files_only=True, streaming=True), pushed[1])
    assert hub.requests == []


def test_local_files_only_with_half_a_cache_says_what_is_missing(hub, pushed, load):
    index = load(streaming=True)  # the manifest and the curvature alone
    with pytest.raises(HubConnectionError, match=r"(factors|data)/.* is not in the local cache") as caught:
        load(local_files_only=True)
    assert "download the index once while you are connected" in str(caught.value)
    assert index.commit


OFFLINE = """
import sys
import torch
sys.path.insert(0, {tests!r})
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceIndex
from lorif_hf.errors import HubConnectionError
index = InfluenceIndex.from_pretrained({repo!r}, cache_dir={full!r})
torch.save(index.scores(make_gpt2(), make_rows(24).select([3, 17])), {out!r})
try:
    InfluenceIndex.from_pretrained({repo!r}, cache_dir={empty!r})
except HubConnectionError as error:
    print(error)
"""


@pytest.mark.slow
def test_offline_a_full_cache_works_and_an_empty_one_says_what_to_do(hub, pushed, load, tmp_path, pytestconfig):
    load()
    hub.reset_log()
    places = {"full": str(tmp_path / "cache"), "empty": str(tmp_path / "empty"), "out": str(tmp_path / "scores.pt")}
    script = OFFLINE.format(tests=str(pytestconfig.rootpath / "tests"), repo=REPO, **places)
    environment = {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert torch.equal(torch.load(tmp_path / "scores.pt"), pushed[1])
    assert "the Hub cannot be reached (offline" in ran.stdout and "Connect, or download" in ran.stdout
    assert hub.requests == []


def test_force_download_downloads_every_file_again_once(hub, pushed, load):
    load()
    hub.reset_log()
    index = load(force_download=True)
    files = served(hub)
    assert sorted(files) == sorted({MANIFEST, *(entry.file for entry in index.manifest.files)})
    assert is_right(index, pushed[1])
    assert served(hub) == files


# Who may


def test_a_private_index_needs_the_right_token(hub, built, load, tmp_path):
    built[0].push_to_hub(REPO, token=hub.token, private=True)
    message = r"No dataset repo 'user/my-index' .*private\. Check the name, log in \(hf auth login\) or pass token="
    for token in (None, hub.add_token("hf_stranger", "stranger")):
        with pytest.raises(IndexNotFoundError, match=message):
            load(token=token)
    for number, token in enumerate((hub.token, hub.read_token)):
        for streaming in (False, True):
            index = load(token=token, streaming=streaming, cache_dir=tmp_path / f"{number}-{streaming}")
            assert is_right(index, built[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_token_that_the_hub_does_not_know(hub, pushed, load, streaming):
    with pytest.raises(HubAccessError, match=r"does not accept this token .* log in again \(hf auth login\)"):
        load(token="hf_nonsense", streaming=streaming)


def test_a_token_that_may_only_read_cannot_push(hub, pushed, tmp_path):
    index = InfluenceIndex.build(make_gpt2(), make_rows(4), tmp_path / "index", config=CONFIG)
    for repo in (REPO, "user/new"):
        with pytest.raises(HubAccessError, match="needs the write role, and the repo must be yours"):
            index.push_to_hub(repo, token=hub.read_token)
    assert not hub.uploaded()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_gated_index_says_where_to_ask(hub, pushed, load, streaming):
    hub.set_gated(REPO, "dataset", allowed_users=("friend",))
    for token in (None, hub.add_token("hf_stranger", "stranger")):
        with pytest.raises(HubAccessError, match=r"is gated: ask for access on its page, then log in \(hf auth login"):
            load(token=token, streaming=streaming)
    assert is_right(load(token=hub.add_token("hf_friend", "friend"), streaming=streaming), pushed[1])


# What is not there


@pytest.mark.parametrize("streaming", [False, True])
def test_a_repo_that_does_not_exist(hub, load, streaming):
    with pytest.raises(IndexNotFoundError, match=r"No dataset repo 'user/nothing' .*does not exist.*Check the name"):
        load("user/nothing", streaming=streaming)


def test_a_model_of_that_name_is_hinted_at(hub, load):
    HfApi(token=hub.token).create_repo("user/model")
    with pytest.raises(
        IndexNotFoundError, match="There is a model repo of that name; an index is a dataset repo: ask"
    ):
        load("user/model")


@pytest.mark.parametrize("revision", ["nowhere", "0" * 40])
def test_a_revision_that_does_not_exist(hub, pushed, load, revision):
    with pytest.raises(IndexNotFoundError, match=f"has no revision '{revision}': pass a branch, a tag or a commit"):
        load(revision=revision)


def test_a_dataset_that_is_no_index(hub, load):
    HfApi(token=hub.token).create_repo("user/data", **DATASET)
    with pytest.raises(
        IndexFormatError, match=f"'user/data' is no lorif-hf index: it has no {MANIFEST}. Check the na"
    ):
        load("user/data")


@pytest.mark.parametrize("name", ["a/b/c", "user/", "user/../x", "user/my index", "-x/y", "x" * 200])
def test_a_name_that_is_none_is_not_asked_of_the_hub(hub, load, name):
    with pytest.raises(IndexNotFoundError, match="is neither a folder nor a repo id"):
        load(name)
    assert hub.requests == []


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_the_repo_lacks_is_named(hub, pushed, load, streaming):
    commit(hub, CommitOperationDelete(SEVENTH))
    with pytest.raises(IndexCorruptedError, match="it is missing in 'user/my-index'") as caught:
        load(streaming=streaming).scores(make_gpt2(), queries())
    assert caught.value.file == SEVENTH


# The line fails


FAULTS = {
    "FIN": {"kind": "drop", "after": 300},
    "RST": {"kind": "drop", "after": 300, "reset": True},
    "500 twice": {"kind": "status", "status": 500, "times": 2},
    "503 twice": {"kind": "status", "status": 503, "times": 2},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_fault_in_the_seventh_shard_is_survived(hub, pushed, load, sleeps, fault, streaming):
    # When streaming the third request is that of the tensors.
    planned = hub.faults.add(f"GET .*{SEVENTH}", **fault, skip=2 if streaming else 0)
    index = load(streaming=streaming)
    assert is_right(index, pushed[1])
    assert planned.fired == fault.get("times", 1)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_while_the_examples_are_streamed_is_survived(hub, pushed, load, sleeps, fault):
    index = load(streaming=True)
    planned = hub.faults.add("GET .*train-00002", **{**fault, **({"after": 3} if "after" in fault else {})})
    assert index.examples([2]) == pushed[0].examples([2])
    assert planned.fired


@pytest.mark.parametrize("what", ["examples", "self_influence"])
@pytest.mark.parametrize("kind", ["status", "drop"])
def test_a_hub_that_stays_broken_while_the_examples_are_streamed_is_our_error(hub, pushed, load, sleeps, what, kind):
    index = load(streaming=True)
    hub.faults.add("GET .*train-00002", kind, times=None)
    with pytest.raises(HubConnectionError, match="The Hub failed at data/train-00002.* Try again"):
        index.examples([2]) if what == "examples" else index.self_influence()


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 500}, {"kind": "drop"}, {"kind": "drop", "reset": True}]
)
@pytest.mark.parametrize("where", ["the manifest", "a shard", "a range"])
def test_a_hub_that_stays_broken_is_given_up_after_a_bounded_number_of_tries(hub, pushed, load, sleeps, fault, where):
    index = load(streaming=True) if where == "a range" else None
    name = MANIFEST if where == "the manifest" else SEVENTH
    planned = hub.faults.add(name, **fault, times=None)
    with pytest.raises(HubConnectionError, match="Try again|Connect, or"):
        index.scores(make_gpt2(), queries()) if index else load()
    assert 1 < planned.fired <= 40
    hub.faults.clear()
    assert is_right(load(), pushed[1])


def test_a_hub_that_is_not_there(hub, load, monkeypatch, sleeps):
    hub.faults.add(".", "drop", times=None)
    with pytest.raises(HubConnectionError, match="cannot be reached|Try again"):
        load()


def test_a_byte_corrupted_on_the_way_names_the_file_and_force_download_mends_it(hub, pushed, load):
    hub.faults.add(f"GET .*{SEVENTH}", "corrupt", offset=900)
    with pytest.raises(IndexCorruptedError, match="SHA-256 is .*download it again") as caught:
        load()
    assert caught.value.file == SEVENTH
    with pytest.raises(IndexCorruptedError):  # the cache holds the damaged file, and it is noticed again
        load()
    assert is_right(load(force_download=True), pushed[1])
    assert is_right(load(), pushed[1])


# Ranges


@pytest.fixture
def shard(pushed):
    return next(entry for entry in pushed[0].manifest.shards if entry.file == SEVENTH)


@pytest.fixture
def remote(hub, pushed, tmp_path):
    """A function that opens a streaming store; its tensors are those of the seventh shard."""

    def store(pieces=None):
        opened = StreamingStore(REPO, None, pieces, cache_dir=tmp_path / "cache")
        hub.reset_log()
        return opened

    return store


def ranges(hub, file=SEVENTH):
    return [r.range for r in hub.requests if r.method == "GET" and r.path_in_repo == file and r.range]


def test_ranges_are_exact_and_neighbours_come_in_one_request(hub, pushed, remote, shard):
    file = remote().tensors(shard)
    order = sorted(file.spans, key=lambda name: file.spans[name].begin)
    start = file.spans[order[0]].begin
    assert ranges(hub) == ["bytes=0-7", f"bytes=8-{start - 1}"]
    first, second, far = order[2], order[3], order[6]
    file.prefetch([far, second, first])
    asked = [
        f"bytes={file.spans[first].begin}-{file.spans[second].end - 1}",
        f"bytes={file.spans[far].begin}-{file.spans[far].end - 1}",
    ]
    assert ranges(hub)[2:] == asked
    sizes = [file.spans[name].end - file.spans[name].begin for name in (first, second, far)]
    assert hub.bytes_served(SEVENTH) == start + sum(sizes)
    local = pushed[0]._store.tensors(shard)
    for name in (first, second, far):
        assert torch.equal(file.read(name), local.read(name))
    assert len(ranges(hub)) == 4  # reading what was fetched asks nothing


def test_single_rows_are_read_alone(hub, pushed, remote, shard):
    file = remote().tensors(shard)
    name = next(iter(file.spans))
    before = hub.bytes_served(SEVENTH)
    span = file.spans[name]
    assert torch.equal(file.read(name, 1, 2), pushed[0]._store.tensors(shard).read(name, 1, 2))
    assert hub.bytes_served(SEVENTH) - before == (span.end - span.begin) // 2


@pytest.mark.xfail(strict=True, reason="a part of a tensor has no hash of its own: DESIGN vouches for whole ones")
def test_a_corrupted_byte_of_selected_rows_is_noticed(hub, pushed, load):
    index = load(streaming=True).select([12])
    hub.faults.add(f"GET .*{SEVENTH}", "corrupt", skip=2, offset=1)
    with pytest.raises(IndexCorruptedError):
        index.scores(make_gpt2(), queries())


@pytest.mark.parametrize(("skip", "offset"), [(0, 0), (0, 1), (0, 7), (1, 0), (1, 5), (1, 200)])
def test_a_corrupted_header_names_the_file(hub, remote, shard, skip, offset):
    store = remote()
    hub.faults.add(f"GET .*{SEVENTH}", "corrupt", skip=skip, offset=offset)
    with pytest.raises(IndexCorruptedError) as caught:
        store.tensors(shard)
    assert caught.value.file == SEVENTH


@pytest.mark.parametrize("pieces", [False, True])
def test_a_corrupted_tensor_names_file_and_tensor_and_nothing_of_it_is_kept(hub, remote, shard, tmp_path, pieces):
    folder = tmp_path / "pieces" if pieces else None
    file = remote(folder).tensors(shard)
    first, second = sorted(file.spans, key=lambda name: file.spans[name].begin)[:2]
    hub.faults.add(f"GET .*{SEVENTH}", "corrupt", offset=file.spans[second].begin - file.spans[first].begin + 3)
    with pytest.raises(IndexCorruptedError, match=f"tensor '{second}' did not arrive as it was written") as caught:
        file.prefetch([first, second])
    assert caught.value.file == SEVENTH
    file.prefetch([first, second])
    assert torch.isfinite(file.read(second).float()).all()
    if pieces:
        kept = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        assert kept and all(name == digest for name, digest in kept.items())


def test_a_corrupted_page_of_the_examples_names_the_file(hub, pushed, load):
    index = load(streaming=True)
    hub.faults.add("GET .*train-00002", "corrupt", skip=1, offset=60)
    with pytest.raises(IndexCorruptedError) as caught:
        index.examples([2])
    assert caught.value.file.startswith("data/train-00002")


def test_a_corrupted_page_of_a_column_names_the_file(hub, pushed, load):
    index = load(streaming=True)
    hub.faults.add("GET .*train-00002", "corrupt", skip=1, offset=60)
    with pytest.raises(IndexCorruptedError) as caught:
        index.self_influence()
    assert caught.value.file.startswith("data/train-00002")


def test_pieces_are_kept_by_their_hash_and_read_again_without_a_request(hub, remote, shard, tmp_path):
    pieces = tmp_path / "pieces"
    first = remote(pieces).tensors(shard)
    names = list(first.spans)
    first.prefetch(names)
    assert {path.name for path in pieces.iterdir()} == {span.sha256 for span in first.spans.values()}
    second = remote(pieces).tensors(shard)
    hub.reset_log()
    second.prefetch(names)
    assert all(torch.equal(second.read(name), first.read(name)) for name in names)
    assert hub.requests == []


@pytest.mark.parametrize("damage", ["edited", "cut", "empty", "deleted"])
def test_a_damaged_piece_is_fetched_again_and_mended(hub, remote, shard, tmp_path, damage):
    pieces = tmp_path / "pieces"
    file = remote(pieces).tensors(shard)
    file.prefetch(list(file.spans))
    name, span = next(iter(file.spans.items()))
    path, content = pieces / span.sha256, (pieces / span.sha256).read_bytes()
    damaged = {"edited": bytes(len(content)), "cut": content[:-1], "empty": b"", "deleted": None}[damage]
    path.unlink() if damaged is None else path.write_bytes(damaged)
    again = remote(pieces).tensors(shard)
    hub.reset_log()
    again.prefetch(list(file.spans))
    assert ranges(hub) == [f"bytes={span.begin}-{span.end - 1}"]
    assert torch.equal(again.read(name), file.read(name)) and path.read_bytes() == content


def test_pieces_of_one_index_serve_another_with_the_same_tensors(hub, pushed, load, tmp_path):
    load(streaming=True).scores(make_gpt2(), queries())
    commit(hub, CommitOperationAdd("notes.txt", b"another commit, the same tensors"))
    index = load(streaming=True)
    hub.reset_log()
    assert is_right(index, pushed[1])
    assert all(asked == "bytes=0-7" or asked.startswith("bytes=8-") for asked in ranges(hub))


@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", [SEVENTH, "data/train-00007-of-00012.parquet"])
def test_a_file_of_another_size_than_the_manifest_says(hub, pushed, load, change, streaming, name):
    content = hub.files(REPO, "dataset")[name]
    commit(hub, CommitOperationAdd(name, content[:-1] if change < 0 else content + b"0"))
    with pytest.raises(IndexCorruptedError, match=rf"it has {len(content) + change} bytes, the manifest") as caught:
        index = load(streaming=streaming)
        index.attribute(make_gpt2(), queries(), top_k=24)
    assert caught.value.file == name


@pytest.mark.parametrize("cut", [0, 5, 8, 60])
def test_a_short_read_is_noticed(pushed, remote, shard, monkeypatch, cut):
    store = remote()
    content = (pushed[0].path / SEVENTH).read_bytes()
    monkeypatch.setattr(store, "_open", lambda entry: io.BytesIO(content[:cut]))
    with pytest.raises(IndexCorruptedError, match=r"the Hub gave \d+ bytes of \d+ asked for") as caught:
        store.tensors(shard)
    assert caught.value.file == SEVENTH


def test_a_path_that_leads_out_is_never_asked_of_the_hub(hub, pushed, load):
    values = json.loads(hub.files(REPO, "dataset")[MANIFEST])
    values["curvature"]["file"] = "../../user/secret/x.safetensors"
    commit(hub, CommitOperationAdd(MANIFEST, json.dumps(values).encode()))
    hub.reset_log()
    with pytest.raises(IndexCorruptedError, match="is not a plain path inside the index"):
        load()
    assert not [request for request in hub.requests if "secret" in request.path]
    assert isinstance(Manifest.from_json((pushed[0].path / MANIFEST).read_text()), Manifest)
