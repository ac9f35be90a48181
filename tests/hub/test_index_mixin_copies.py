"""Copies of an index: in another folder, also after an interruption; pickled and deep copied, also after queries."""

import copy
import errno
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from digests import digests
from published import REPO, is_right, queries
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import BuildFolderError, IndexCorruptedError, StorageError
from lorif_hf.hub import index_mixin, store
from lorif_hf.storage.layout import CARD, LDS, MANIFEST, STAGING
from lorif_hf.storage.measured_lds import LDSRecord


SUPPORT = str(Path(__file__).parents[1] / "support")


@pytest.fixture
def index(built, tmp_path):
    """The index of `built` in a folder of the test's own."""
    return InfluenceIndex.from_pretrained(shutil.copytree(built[0].path, tmp_path / "index"))


# save_pretrained


@pytest.mark.parametrize("call", [1, 2, 14, 27, 28])
@pytest.mark.parametrize("error", [KeyboardInterrupt, StorageError("no room")])
def test_an_interrupted_copy_goes_on_when_called_again(index, tmp_path, monkeypatch, call, error):
    """28 files: curvature, 12 shards, 12 tables, the card and the manifest, and a score."""
    index.save_lds(LDSRecord(0.5, 0.95, None, None, None, None, 3, 50, 2, None, None, index.manifest.build))
    write, written = index_mixin.write_atomically, []

    def interrupted(path, fill):
        written.append(path)
        if len(written) == call:
            (path.parent).mkdir(parents=True, exist_ok=True)
            (path.parent / f"{path.name}.17-18.tmp").write_bytes(b"half")
            raise error
        write(path, fill)

    with monkeypatch.context() as patch:
        patch.setattr(index_mixin, "write_atomically", interrupted)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            index.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / MANIFEST).exists() and (tmp_path / "copy" / STAGING).exists()
    again = []
    monkeypatch.setattr(index_mixin, "write_atomically", lambda path, fill: (again.append(path), write(path, fill)))
    index.save_pretrained(tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(index.path)
    files = sorted(path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(index.path) for path in index.path.rglob("*") if path.is_file())
    vouched = {tmp_path / "copy" / entry.file for entry in index.manifest.files}
    assert not vouched & set(again) & set(written[: call - 1]), "what is there is not copied again"


KILLED = """
import os, signal, sys
sys.path.insert(0, {support!r})
from lorif_hf import InfluenceIndex
from lorif_hf.hub import index_mixin, store
calls, whole = [], index_mixin.shutil.copyfile
def copyfile(source, target):
    calls.append(1)
    if len(calls) == {call}:
        open(target, "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(source, target)
index_mixin.shutil.copyfile = copyfile
InfluenceIndex.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


@pytest.mark.parametrize("call", [1, 9])
def test_a_killed_copy_goes_on_too(index, tmp_path, call):
    command = [
        sys.executable,
        "-c",
        KILLED.format(support=SUPPORT, call=call),
        str(index.path),
        str(tmp_path / "copy"),
    ]
    assert subprocess.run(command, check=False).returncode == -9
    assert list((tmp_path / "copy").rglob("*.tmp"))
    index.save_pretrained(tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(index.path) and not list((tmp_path / "copy").rglob("*.tmp"))


def test_a_copy_that_was_stopped_at_its_very_end_or_in_its_push_goes_on(hub, index, tmp_path):
    index.save_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / STAGING).mkdir()
    (tmp_path / "copy" / CARD).write_text("My words.")
    shard = tmp_path / "copy" / index.manifest.shards[3].file
    shard.write_bytes(bytes(shard.stat().st_size))
    (tmp_path / "copy" / index.manifest.examples[0].file).unlink()
    index.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id=REPO, token=hub.token)
    InfluenceIndex.from_pretrained(tmp_path / "copy").verify()
    assert (tmp_path / "copy" / CARD).read_text() == "My words." and not (tmp_path / "copy" / STAGING).exists()
    assert len(hub.commits(REPO, "dataset")) == 2


def test_a_folder_with_another_index_or_the_beginning_of_one_is_refused_and_stays(index, tmp_path, monkeypatch):
    other = InfluenceIndex.build(make_gpt2(), make_rows(3), tmp_path / "other", config=plain_config(shard_size=2))
    before = digests(other.path)
    with pytest.raises(BuildFolderError, match="other already holds another index. Choose another folder or delete"):
        index.save_pretrained(other.path)
    assert digests(other.path) == before
    with monkeypatch.context() as patch:
        patch.setattr(index_mixin, "write_atomically", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            other.save_pretrained(tmp_path / "begun")
    with pytest.raises(BuildFolderError, match="begun holds an unfinished build or copy of another index"):
        index.save_pretrained(tmp_path / "begun")
    with pytest.raises(BuildFolderError, match="begun holds an unfinished build of another model"):
        InfluenceIndex.build(make_gpt2(), make_rows(3), tmp_path / "begun", config=plain_config(shard_size=2))


def test_a_damaged_index_is_not_copied(index, tmp_path):
    shard = index.path / index.manifest.shards[3].file
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(IndexCorruptedError, match=index.manifest.shards[3].file):
        index.save_pretrained(tmp_path / "copy")


def test_the_score_of_an_index_comes_with_a_later_copy(index, tmp_path):
    index.save_pretrained(tmp_path / "copy")
    index.save_lds(LDSRecord(0.5, 0.95, None, None, None, None, 3, 50, 2, None, None, index.manifest.build))
    index.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / LDS).read_bytes() == (index.path / LDS).read_bytes()


# Left over temporary files


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_kill_while_the_card_was_written_leaves_goes_with_the_next_run_and_is_never_pushed(hub, index):
    left = index.path / f"{CARD}.{dead_process()}-3.tmp"
    left.write_text("half a card")
    index.push_to_hub(REPO, token=hub.token)
    assert not [name for name in hub.files(REPO, "dataset") if name.endswith(".tmp")]
    rebuilt = plain_config(projection_factor=2, shard_size=2)
    InfluenceIndex.build(make_gpt2(), make_rows(24), index.path, config=rebuilt)
    assert not left.exists() and (index.path / CARD).exists()
    left.write_text("half a card")
    index.save_lds(LDSRecord(0.5, 0.95, None, None, None, None, 3, 50, 2, None, None, index.manifest.build))
    assert not left.exists()


# pickle and deepcopy


DUPLICATES = {
    "pickle": lambda index: pickle.loads(pickle.dumps(index)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "twice": lambda index: pickle.loads(pickle.dumps(copy.deepcopy(index))),
}


@pytest.mark.parametrize("asked", [False, True], ids=["before its first query", "after it"])
@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_duplicate_answers_the_same(built, asked, duplicate):
    whole, expected = built
    index = InfluenceIndex.from_pretrained(whole.path)
    view = index.select([2, 3, 11])
    if asked:
        assert is_right(index, expected) and view.attribute(make_gpt2(), queries(), top_k=2)
    other, other_view = duplicate(index), duplicate(view)
    # How queries are held, and with it their rounding, depends on how many rows they meet.
    torch.testing.assert_close(
        other_view.scores(make_gpt2(), queries()), expected[:, [2, 3, 11]], rtol=1e-5, atol=1e-5
    )
    assert is_right(other, expected)
    assert (len(other), len(other_view), repr(other)) == (24, 3, repr(index))
    assert other.examples([5]) == index.examples([5]) and is_right(index, expected)
    other.verify()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("asked", [False, True], ids=["before its first query", "after it"])
@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_duplicate_of_an_index_of_the_hub_reads_it_itself(pushed, load, asked, duplicate, streaming):
    _, expected = pushed
    index = load(streaming=streaming)
    if asked:
        assert is_right(index, expected)
    other = duplicate(index)
    assert is_right(other, expected) and is_right(duplicate(index.select([4])), expected[:, [4]])
    assert (other.repo_id, other.commit) == (index.repo_id, index.commit)
    assert other.examples([5]) == index.examples([5])


UNPICKLED = """
import pickle, sys
sys.path.insert(0, {support!r})
import torch
from published import queries
from tiny import make_gpt2
index = pickle.load(open(sys.argv[1], "rb"))
torch.save(index.scores(make_gpt2(), queries()), sys.argv[2])
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_another_process_unpickles_it(hub, pushed, load, tmp_path, streaming):
    """As an engine's workers do: a worker reads the bytes that it needs by itself."""
    _, expected = pushed
    index = load(streaming=streaming)
    assert is_right(index, expected)
    if streaming:  # what this process knows of other repos does not come along
        index._store._filesystem.dircache["datasets/user/other"] = [{"name": "x" * 100_000}]
    (tmp_path / "pickle").write_bytes(pickle.dumps(index))
    assert (tmp_path / "pickle").stat().st_size < 50_000, "no factors, no projections"
    command = [
        sys.executable,
        "-c",
        UNPICKLED.format(support=SUPPORT),
        str(tmp_path / "pickle"),
        str(tmp_path / "out"),
    ]
    subprocess.run(command, check=True, env=hub.environment(tmp_path / "home"), timeout=300)
    assert torch.equal(torch.load(tmp_path / "out"), expected)


def test_a_built_index_with_its_tokenizer_is_copied(tmp_path, tokenizer):
    index = InfluenceIndex.build(
        make_gpt2(), make_rows(4), tmp_path / "index", config=plain_config(), processing_class=tokenizer
    )
    expected = index.scores(make_gpt2(), "3 4 5 6")
    for duplicate in DUPLICATES.values():
        assert torch.equal(duplicate(index).scores(make_gpt2(), "3 4 5 6"), expected)


# The disk of the cache


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_to_is_our_own_error(pushed, load, tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.HfApi, "hf_hub_download", refuse)
    with pytest.raises(StorageError, match=f"{tmp_path}/cache (could not|cannot) be written"):
        load()


# Threads


@pytest.mark.parametrize("way", ["hub", "streaming", "streaming with a cache"])
def test_threads_that_query_one_index_of_the_hub_at_once_get_the_same_answers(hub, pushed, tmp_path, way):
    _, expected = pushed
    place = {} if way == "streaming" else {"cache_dir": tmp_path / "cache"}
    index = InfluenceIndex.from_pretrained(REPO, streaming=way != "hub", **place)
    hub.reset_log()
    models = [make_gpt2() for _ in range(4)]  # each thread has its own
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for scores in pool.map(lambda model: index.scores(model, queries()), models):
                assert torch.equal(scores, expected)
    if way == "streaming with a cache":
        kept = os.listdir(tmp_path / "cache" / "lorif_hf")
        assert kept and not [name for name in kept if not len(name) == 64], "whole tensors, by their hashes"
    heads = [r.path_in_repo for r in hub.requests if r.range and r.range.startswith("bytes=0-7")]
    assert len(heads) == len(set(heads)), "each header is fetched once"
