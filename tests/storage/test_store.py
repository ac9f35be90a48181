"""An index in a folder: each file checked once, its tensors mapped once."""

import os

import pytest
import torch

from lorif_hf.errors import IndexCorruptedError
from lorif_hf.hub.store import HubStore, RepoStore, StreamingStore
from lorif_hf.storage import files
from lorif_hf.storage.files import file_entry, write_tensors, write_text
from lorif_hf.storage.layout import FileEntry
from lorif_hf.storage.store import LocalStore, Store


NAME = "factors/x.safetensors"


@pytest.fixture(autouse=True)
def forget_verified_files(monkeypatch):
    monkeypatch.setattr(files, "_verified", {})


@pytest.fixture
def entry(tmp_path):
    write_tensors(tmp_path / NAME, {"a": torch.arange(6.0).view(3, 2), "b": torch.ones(2, dtype=torch.bfloat16)})
    return file_entry(tmp_path, NAME)


def test_path_and_tensors_and_parquet_are_those_of_the_file(tmp_path, entry):
    store = LocalStore(tmp_path)
    assert store.path(entry) == store.parquet(entry) == tmp_path / NAME
    assert torch.equal(store.tensors(entry).read("a"), torch.arange(6.0).view(3, 2))
    assert torch.equal(store.tensors(entry).read("a", 1, 2), torch.tensor([[2.0, 3.0]]))


def test_every_store_knows_where_it_is_from_and_nobody_overrides_what_does_something(tmp_path):
    store = LocalStore(tmp_path)
    assert (store.folder, store.repo_id, store.commit) == (tmp_path, None, None)
    kinds = [LocalStore, RepoStore, HubStore, StreamingStore]
    done = {name for name in vars(Store) if callable(getattr(Store, name)) and name not in Store.__abstractmethods__}
    assert not [(kind, name) for kind in kinds for name in done - {"__init__"} if name in vars(kind)]
    with pytest.raises(TypeError, match="abstract"):
        Store(tmp_path)


def test_a_file_that_need_not_be_there(tmp_path):
    assert LocalStore(tmp_path).optional("x.json") is None
    write_text(tmp_path / "x.json", "{}")
    assert LocalStore(tmp_path).optional("x.json") == tmp_path / "x.json"


def test_a_file_is_hashed_once_and_mapped_once(tmp_path, entry, monkeypatch):
    files._verified.clear()
    hashed = []
    real = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path) or real(path))
    store = LocalStore(tmp_path)
    first = store.tensors(entry)
    assert store.tensors(entry) is first
    store.path(entry)
    LocalStore(tmp_path).tensors(entry)
    assert hashed == [tmp_path / NAME]


def test_a_tensor_may_be_written_to_without_changing_the_file(tmp_path, entry):
    store = LocalStore(tmp_path)
    store.tensors(entry).read("a").zero_()
    files._verified.clear()
    assert store.path(entry) == tmp_path / NAME
    assert LocalStore(tmp_path).tensors(entry).read("a").sum() == 15


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"it has \d+ bytes, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), r"it has \d+ bytes, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"), "its SHA-256 is .*, the manifest says"),
        (lambda path: (path.unlink(), path.mkdir()), "it is not a file"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "it cannot be opened"),
        (lambda path: (path.unlink(), path.symlink_to(path.with_name("no"))), "it is missing"),
    ],
    ids=["deleted", "cut", "longer", "edited", "a folder", "a link to itself", "a dead link"],
)
@pytest.mark.parametrize("method", ["path", "tensors", "parquet"])
def test_a_damaged_file_is_named(tmp_path, entry, damage, message, method):
    damage(tmp_path / NAME)
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        getattr(LocalStore(tmp_path), method)(entry)
    assert caught.value.file == NAME


def test_a_change_after_the_check_is_noticed_by_the_next_reader(tmp_path, entry):
    LocalStore(tmp_path).path(entry)
    content = bytearray((tmp_path / NAME).read_bytes())
    content[-1] ^= 1
    (tmp_path / NAME).write_bytes(content)
    os.utime(tmp_path / NAME, ns=(1, 1))
    with pytest.raises(IndexCorruptedError, match="its SHA-256 is"):
        LocalStore(tmp_path).tensors(entry)


def test_a_file_that_is_no_tensor_file_is_named(tmp_path):
    write_text(tmp_path / "x.json", "{}" * 20)
    with pytest.raises(IndexCorruptedError, match="its header claims") as caught:
        LocalStore(tmp_path).tensors(file_entry(tmp_path, "x.json"))
    assert caught.value.file == "x.json"


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "a\\x", "", ".", "a//b", "./a", "c:x", "a\0b"])
def test_a_path_that_is_not_plain_is_refused(tmp_path, name):
    with pytest.raises(IndexCorruptedError, match="is not a plain path inside the index"):
        LocalStore(tmp_path).path(FileEntry(name, 1, "0" * 64))


@pytest.mark.parametrize("name", ["x" * 5000, "/".join(["x"] * 3000)], ids=["a long name", "a long path"])
def test_a_name_too_long_for_the_system_is_our_error(tmp_path, name):
    with pytest.raises(IndexCorruptedError, match="is not a plain path inside the index"):
        LocalStore(tmp_path).path(FileEntry(name, 1, "0" * 64))


def test_a_link_within_the_index_is_followed_and_one_out_of_it_is_not(tmp_path, entry):
    folder = tmp_path / "index"
    folder.mkdir()
    os.rename(tmp_path / "factors", folder / "real")
    (folder / "factors").symlink_to(folder / "real")
    assert LocalStore(folder).path(entry)
    os.rename(folder / "real", tmp_path / "outside")
    (folder / "factors").unlink()
    (folder / "factors").symlink_to(tmp_path / "outside")
    with pytest.raises(IndexCorruptedError, match="it is a link that leads out of the index, to "):
        LocalStore(folder).path(entry)
