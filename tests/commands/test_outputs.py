"""Outputs: refused before the work where they cannot be written, and replaced only by whole ones."""

import os

import pytest

from lorif_hf.commands.outputs import check_outputs, write_output
from lorif_hf.errors import StorageError


def test_what_can_be_written_passes(tmp_path):
    (tmp_path / "there.csv").write_text("x")
    check_outputs({"--csv": tmp_path / "there.csv", "--html": tmp_path / "näme.html", "--json": None})
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "--html: {tmp} is a folder; name a file in it."),
        ("no/page.html", "--html: there is no folder {tmp}/no to write page.html into; make it first."),
        ("file/page.html", "--html: there is no folder {tmp}/file to write page.html into; make it first."),
    ],
)
def test_what_cannot_is_told_with_its_option(tmp_path, name, message):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError) as caught:
        check_outputs({"--html": tmp_path / name})
    assert str(caught.value) == message.format(tmp=tmp_path)


def test_a_folder_that_takes_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(StorageError, match=f"--csv: nothing can be written in {tmp_path}"):
        check_outputs({"--csv": tmp_path / "x.csv"})


def test_two_outputs_need_two_files(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "same")
    with pytest.raises(StorageError, match=r"--html: .*link is what --csv writes already"):
        check_outputs({"--csv": tmp_path / "same", "--html": tmp_path / "link"})


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="page.html could not be written"):
        write_output(path, fails)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    write_output(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_a_link_is_followed_and_a_device_is_written_as_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_output(tmp_path / "link", lambda path: path.write_text("x"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "x"
    check_outputs({"--csv": tmp_path.__class__(os.devnull)})
    write_output(tmp_path.__class__(os.devnull), lambda path: path.write_text("x"))
