"""A folder in which something is built: whose it is, who holds it, and what was begun in it."""

import json

import pytest
from filelock import FileLock, Timeout

from lorif_hf.storage.claim import BuildFolder
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
