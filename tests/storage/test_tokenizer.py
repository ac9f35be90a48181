"""The processing class in the index's folder: whole or absent, and every failure our own error."""

import errno
import os

import pytest

from lorif_hf.errors import DiskFullError, ProcessingClassError, StorageError
from lorif_hf.storage.tokenizer import save_processing_class


class Saved:
    """A processing class that writes what it is told to."""

    def __init__(self, *files, error=None):
        self.files, self.error = files, error

    def save_pretrained(self, folder):
        for name in self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        if self.error is not None:
            raise self.error


class PanicException(BaseException):
    """What pyo3 raises of a panic in Rust."""


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_tokenizer_is_saved_as_it_saves_itself(tmp_path, tokenizer):
    save_processing_class(tokenizer, tmp_path / "deep" / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "expected")
    for name in files(tmp_path / "expected"):
        saved = (tmp_path / "deep" / "tokenizer" / name).read_bytes()
        assert saved == (tmp_path / "expected" / name).read_bytes()
    assert files(tmp_path / "deep") == [f"tokenizer/{name}" for name in files(tmp_path / "expected")]


def test_what_was_there_goes(tmp_path):
    save_processing_class(Saved("a.json", "b/c.json"), tmp_path / "tokenizer")
    save_processing_class(Saved("b/d.json"), tmp_path / "tokenizer")
    assert files(tmp_path) == ["tokenizer/b/d.json"]


@pytest.mark.parametrize(
    "what",
    [object(), len, "gpt2", type("Odd", (), {"save_pretrained": 3})()],
    ids=["object", "builtin", "name", "no method"],
)
def test_what_cannot_save_itself_says_what_to_pass(tmp_path, what):
    message = f"A {type(what).__name__} has no save_pretrained, .*Pass another one, or processing_class=None"
    with pytest.raises(ProcessingClassError, match=message):
        save_processing_class(what, tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


ERRORS = [
    NotImplementedError("no vocabulary"),
    TypeError("Object of type set is not JSON serializable"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone/vocab.txt"),
    PanicException("called `Option::unwrap()` on a `None` value"),
    RecursionError("maximum recursion depth exceeded"),
]


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "none yet"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_one_whose_saving_fails_says_what_to_pass_and_leaves_what_was_there(tmp_path, error, before):
    if before:
        save_processing_class(Saved("old.json"), tmp_path / "tokenizer")
    message = rf"The Saved cannot be saved, .* \({type(error).__name__}: .*Pass another one, or processing_class=None"
    with pytest.raises(ProcessingClassError, match=message):
        save_processing_class(Saved("half.json", error=error), tmp_path / "tokenizer")
    assert files(tmp_path) == (["tokenizer/old.json"] if before else [])
    assert os.listdir(tmp_path) == (["tokenizer"] if before else [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("told", [lambda n: OSError(n, os.strerror(n)), lambda n: Exception(f"x (os error {n})")])
def test_a_full_disk_is_not_its_fault(tmp_path, number, told):
    with pytest.raises(DiskFullError, match="tokenizer.* could not be written"):
        save_processing_class(Saved("half.json", error=told(number)), tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_not_its_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="tokenizer could not be written: Not a directory"):
        save_processing_class(Saved("a.json"), tmp_path / "file" / "tokenizer")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_stop_stays_a_stop_and_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        save_processing_class(Saved("half.json", error=error()), tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a:b.json", "a\\b.json", "n" * 250 + "/" + "m" * 250 + "/" + "o" * 250 + "/p" * 200])
def test_a_file_that_no_index_may_hold_is_refused_before_the_index_is_whole(tmp_path, name):
    if len(name) < 20:
        message = "no index may hold a file of the name"
    else:
        message = "no index may hold|File name too long"
    with pytest.raises(ProcessingClassError, match=message):
        save_processing_class(Saved("a.json", name), tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_one_that_writes_nothing_or_a_link_is_refused(tmp_path):
    class Linked(Saved):
        def save_pretrained(self, folder):
            (folder / "vocab.json").symlink_to("/etc/hostname")

    for processing_class, message in ((Saved(), "wrote no file"), (Linked(), "made 'vocab.json' a link")):
        with pytest.raises(ProcessingClassError, match=message):
            save_processing_class(processing_class, tmp_path / "tokenizer")
        assert list(tmp_path.iterdir()) == []
