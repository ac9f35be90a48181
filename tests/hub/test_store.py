"""An index on the Hub: one commit, what is asked of the server, and everything that goes wrong on the way.

The real client against the local server; faults are the server's.
"""

import hashlib
import subprocess
import sys

import pytest
import torch
from huggingface_hub import CommitOperationDelete, HfApi
from published import CONFIG, DATASET, REPO, SEVENTH, commit, is_right, queries, served
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceIndex
from lorif_hf.errors import (
    HubAccessError,
    HubConnectionError,
    IndexCorruptedError,
    IndexFormatError,
    IndexNotFoundError,
)
from lorif_hf.storage.layout import CARD, CURVATURE, MANIFEST


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
    assert sorted(files) == sorted({MANIFEST, CARD, *(entry.file for entry in index.manifest.files)})
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
    index = load(streaming=True)  # the manifest alone
    with pytest.raises(HubConnectionError, match=r"curvature/.* is not in the local cache") as caught:
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
    script = OFFLINE.format(tests=str(pytestconfig.rootpath / "tests" / "support"), repo=REPO, **places)
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
    assert sorted(files) == sorted({MANIFEST, CARD, *(entry.file for entry in index.manifest.files)})
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
    hint = (
        r"There is a model repo of that name; .* unless it lies in a model's \(repo_type='model', subfolder=...\): ask"
    )
    with pytest.raises(IndexNotFoundError, match=hint):
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
