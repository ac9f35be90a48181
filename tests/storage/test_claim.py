"""A folder in which something is built: whose it is, who holds it, and what was begun in it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from lorif_hf.errors import StorageError
from lorif_hf.storage import claim
from lorif_hf.storage.claim import BuildFolder, remove_left_over
from lorif_hf.storage.layout import STAGING


class NotThisOne(Exception):
    pass


CAKES = BuildFolder(
    finished="cake.json",
    note="recipe.json",
    error=NotThisOne,
    thing="a cake",
    stranger="holds no cake",
    busy="Another baker is at {folder}.",
)
PLAN = {"sugar": 3, "eggs": [1, 2]}


def another(begun):
    """Of the plan that was begun: what the folder holds where that is not `PLAN`."""
    return None if begun == PLAN else f"a cake with {begun.get('sugar')} of sugar. Wash up first."


def claimed(folder, plan=PLAN):
    return CAKES.claimed(folder, plan, another)


@pytest.fixture
def unfinished(tmp_path):
    """A folder in which a build was interrupted."""
    folder = tmp_path / "cake"
    with pytest.raises(ZeroDivisionError), claimed(folder):
        (folder / STAGING / "dough").write_text("half")
        raise ZeroDivisionError
    return folder


@pytest.mark.parametrize("inside", [None, [], ["cake.json"], ["cake.json", "photo.png"], [f"{STAGING}/lock"]])
def test_a_folder_that_may_be_used(tmp_path, inside):
    folder = tmp_path / "cake"
    for name in inside or []:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if inside == []:
        folder.mkdir()
    CAKES.check(folder)
    assert folder.exists() == (inside is not None)


def test_an_unfinished_build_may_be_gone_on_with_whatever_lies_beside_it(unfinished):
    (unfinished / "layer.bin").touch()
    CAKES.check(unfinished)


@pytest.mark.parametrize("inside", [["thesis.tex"], ["thesis.tex", f"{STAGING}/other.json"]])
def test_a_folder_of_something_else_is_refused(tmp_path, inside):
    for name in inside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(NotThisOne, match=f"^{tmp_path} is not empty and holds no cake. Choose another folder.$"):
        CAKES.check(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "cake").touch()
    with pytest.raises(NotThisOne, match="cake is a file; a cake needs a folder.$"):
        CAKES.check(tmp_path / "cake")


def test_what_was_begun_is_noted_and_the_staging_folder_goes_at_the_end(tmp_path):
    folder = tmp_path / "deep" / "cake"
    with claimed(folder):
        assert json.loads((folder / STAGING / "recipe.json").read_text()) == PLAN
        (folder / "cake.json").touch()
    assert [path.name for path in folder.iterdir()] == ["cake.json"]


def test_after_an_error_the_same_plan_goes_on_and_left_over_temporary_files_are_gone(unfinished):
    (unfinished / "factors").mkdir()
    left_over = [unfinished / STAGING / "dough.7.tmp", unfinished / "factors" / "x.8.tmp"]
    for path in left_over:
        path.touch()
    with claimed(unfinished):
        assert (unfinished / STAGING / "dough").read_text() == "half"
        assert not any(path.exists() for path in left_over)
    assert not (unfinished / STAGING).exists()


def test_another_plan_is_refused_and_changes_nothing(unfinished):
    note = unfinished / STAGING / "recipe.json"
    note.write_text(json.dumps({"sugar": 9}))
    (unfinished / "x.tmp").touch()
    for _ in range(2):  # the lock is let go
        with pytest.raises(NotThisOne, match=f"^{unfinished} holds a cake with 9 of sugar. Wash up first.$"):
            claimed(unfinished).__enter__()
    assert json.loads(note.read_text()) == {"sugar": 9} and (unfinished / "x.tmp").exists()
    assert (unfinished / STAGING / "dough").exists()


def test_two_cannot_hold_a_folder_and_the_lock_ends_with_the_claim(tmp_path):
    lock = FileLock(tmp_path / STAGING / "lock", timeout=0)
    with claimed(tmp_path):
        with pytest.raises(NotThisOne, match=f"^Another baker is at {tmp_path}.$"):
            claimed(tmp_path).__enter__()
        with pytest.raises(Timeout):
            lock.acquire()
    (tmp_path / STAGING).mkdir()
    with lock:
        pass


def test_a_timeout_of_the_work_itself_is_not_taken_for_another_process(tmp_path):
    with pytest.raises(Timeout), claimed(tmp_path):
        raise Timeout("a lock of somebody else")


# Two processes at the end of one build


def test_whoever_gets_the_lock_when_the_other_has_just_finished_is_told_so_and_nothing_is_lost(tmp_path):
    """It looked before the cake was there; at the lock it must look again."""
    (tmp_path / "cake.json").write_text("whole")
    with pytest.raises(NotThisOne, match=f"^Another process has just finished a cake in {tmp_path}: call again"):
        claimed(tmp_path, {"sugar": 9}).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["cake.json"]
    assert (tmp_path / "cake.json").read_text() == "whole"


@pytest.mark.parametrize("when", ["before the lock is made", "when it is made"])
def test_a_staging_folder_that_goes_meanwhile_is_made_again(tmp_path, monkeypatch, when):
    """As when the other process finishes, or its folder is deleted, at the worst moments."""
    gone = []

    class Late(FileLock):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            self.path = path

        def acquire(self, *arguments, **options):
            if len(gone) < 3:
                gone.append(shutil.rmtree(self.path.parent))
                if when == "when it is made":
                    raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self.path))
            return super().acquire(*arguments, **options)

    monkeypatch.setattr(claim, "FileLock", Late)
    with claimed(tmp_path):
        assert json.loads((tmp_path / STAGING / "recipe.json").read_text()) == PLAN
    assert len(gone) == (3 if when == "when it is made" else len(gone)) and list(tmp_path.iterdir()) == []


def test_a_thing_that_is_finished_between_two_looks_is_not_taken_for_a_strangers(tmp_path, monkeypatch):
    """The other process removes its note while this one looks around."""
    (tmp_path / "layer").touch()
    (tmp_path / STAGING).mkdir()
    (tmp_path / STAGING / "recipe.json").touch()
    exists = Path.exists

    def late(path):
        if path.name == "recipe.json":
            (tmp_path / "cake.json").touch()
            shutil.rmtree(tmp_path / STAGING, ignore_errors=True)
        return exists(path)

    monkeypatch.setattr(Path, "exists", late)
    CAKES.check(tmp_path)


RACE = """
import sys, time
sys.path.insert(0, {tests!r})
from test_claim import CAKES, PLAN, another
from lorif_hf.errors import LorifError
from pathlib import Path
folder, kind = Path(sys.argv[1]), sys.argv[2]
plan = PLAN if kind == "same" else {{"sugar": int(kind)}}
made = told = 0
for number in range(60):
    here = folder / str(number)
    while True:
        try:
            CAKES.check(here)
            if (here / "cake.json").exists():
                break
            with CAKES.claimed(here, plan, lambda begun: None if begun == plan else "another"):
                (here / "layer").write_text(kind)
                (here / "cake.json").write_text(kind)
                made += 1
        except Exception as error:
            if type(error).__name__ != "NotThisOne" or "nother" not in str(error):
                raise
            told += 1
print(made, told)
"""


@pytest.mark.parametrize("kinds", [["same", "same"], ["1", "2"]], ids=["the same plan", "two plans"])
def test_processes_that_race_to_the_end_of_the_same_folder_leave_one_whole_thing(tmp_path, kinds):
    script = RACE.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", script, str(tmp_path)]
    racing = [subprocess.Popen([*command, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for kind in kinds]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in racing]
    assert [code for *_, code in ended] == [0, 0], ended
    assert sum(int(out.split()[0]) for out, *_ in ended) == 60, "each is made once, by one of them"
    for number in range(60):
        folder = tmp_path / str(number)
        assert (folder / "cake.json").read_text() == (folder / "layer").read_text()
        assert not [path for path in folder.iterdir() if path.name not in ("cake.json", "layer", STAGING)]


def test_threads_of_one_process_cannot_hold_a_folder_together(tmp_path):
    refused = []

    def other():
        with pytest.raises(NotThisOne, match="Another baker") as caught:
            claimed(tmp_path).__enter__()
        refused.append(caught.value)

    with claimed(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1


# What the system says


@pytest.mark.parametrize("folder", ["cake", "deep/er/cake"])
@pytest.mark.parametrize("number, message", [(errno.EROFS, "mounted read-only"), (errno.EACCES, "may not write")])
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch, folder, number, message):
    asked = []

    def refuse(dir):
        asked.append(dir)
        raise OSError(number, os.strerror(number), str(dir))

    monkeypatch.setattr(claim.tempfile, "TemporaryFile", refuse)
    with pytest.raises(StorageError, match=f"{folder} cannot be written: .*{message}.* choose another folder"):
        CAKES.check(tmp_path / folder)
    assert asked == [tmp_path] and list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only(tmp_path):
    """A folder of a disk that is mounted read-only, with a finished thing in a folder of it."""
    place = tmp_path / "mounted"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs leave to mount")
    try:
        (place / "finished").mkdir()
        (place / "empty").mkdir()
        (place / "finished" / "cake.json").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_mounted_read_only(read_only):
    CAKES.check(read_only / "finished")  # can still be read
    for folder in (read_only / "empty", read_only / "cake"):
        with pytest.raises(StorageError, match=f"^{folder} cannot be written: the disk is mounted read-only"):
            CAKES.check(folder)
    with pytest.raises(StorageError, match="cannot be written: the disk is mounted read-only"):
        claimed(read_only / "cake").__enter__()


def test_the_trial_leaves_no_trace(tmp_path):
    CAKES.check(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["a file/cake", "a dead link", "n" * 300])
def test_a_place_where_no_folder_can_be_is_our_own_error(tmp_path, place):
    (tmp_path / "a file").touch()
    (tmp_path / "a dead link").symlink_to(tmp_path / "nothing" / "here")
    with pytest.raises(StorageError, match=place[:50]):
        CAKES.check(tmp_path / place)
        claimed(tmp_path / place).__enter__()


def test_a_file_system_without_locks_is_our_own_error(tmp_path, monkeypatch):
    def missing(self, *_):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(claim.FileLock, "acquire", missing)
    with pytest.raises(StorageError, match=f"The file system of {tmp_path} has no locks .* on another disk"):
        claimed(tmp_path).__enter__()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3", "\udc80"])
def test_a_note_that_cannot_be_read_is_our_own_error(unfinished, content):
    (unfinished / STAGING / "recipe.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(NotThisOne, match=r"recipe.json cannot be read \(\w+: .* delete that folder or choose another"):
        CAKES.claimed(unfinished, PLAN, lambda begun: None if begun["eggs"] else "x").__enter__()


# What killed writes leave


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_killed_writes_do_not_fill_a_folder(tmp_path):
    for name in ("README.md.17.tmp", "README.md.17-18.tmp", ".tmpaB3dE9"):
        (tmp_path / name).touch()
    (tmp_path / "tokenizer.3-4.tmp").mkdir()
    CAKES.check(tmp_path)
    (tmp_path / "notes.tmp").touch()  # the owner's own
    with pytest.raises(NotThisOne, match="not empty"):
        CAKES.check(tmp_path)


def test_what_a_killed_process_left_is_removed_and_what_somebody_writes_or_owns_is_not(tmp_path):
    dead, alive = dead_process(), os.getppid()
    left = [f"README.md.{dead}.tmp", f"README.md.{dead}-9.tmp", f"data/x.parquet.{dead}-1.tmp", f"a.{10**30}.tmp"]
    stays = ["README.md", "notes.tmp", "x.y.tmp", f"README.md.{alive}-1.tmp", f"now.{os.getpid()}-1.tmp", ".tmpaB3dE9"]
    (tmp_path / "data").mkdir()
    for name in (*left, *stays):
        (tmp_path / name).touch()
    folder = tmp_path / f"tokenizer.{dead}-2.tmp"
    folder.mkdir()
    (folder / "vocab.json").touch()
    earlier = tmp_path / f"earlier.{os.getpid()}-1.tmp"  # of a process with the same number, as in a container
    earlier.touch()
    os.utime(earlier, (0, 0))
    remove_left_over(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stays, "data"])
    assert list((tmp_path / "data").iterdir()) == []
    remove_left_over(tmp_path, alone=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "data", "notes.tmp", "x.y.tmp"]


def test_the_temporary_folder_of_a_killed_build_goes_too(unfinished):
    (unfinished / "tokenizer.3-4.tmp" / "deep").mkdir(parents=True)
    with claimed(unfinished):
        assert not (unfinished / "tokenizer.3-4.tmp").exists()
