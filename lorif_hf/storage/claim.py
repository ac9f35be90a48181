"""A folder in which something is built by one process at a time; after a crash, the next one finishes it.

Its staging folder holds a lock, a note of what was begun, and the unfinished pieces.
"""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BuildFolderError, StorageError
from .files import write_text
from .layout import MANIFEST, STAGING
from .system_errors import system_errors


# What a killed write leaves: ours says whose it was, and safetensors writes to such a name first.
_TEMPORARY = re.compile(r".+\.(?P<process>\d+)(-\d+)?\.tmp|\.tmp\w{6}", re.DOTALL)
_BEGAN = time.time()  # of this process, as good as
_TRIES = 100  # to get hold of a staging folder that another process is just taking away


@dataclass(frozen=True)
class BuildFolder:
    """How the folders of one kind of thing are told from others, and the words of their errors.

    Args:
        finished (`str`): the file that is there once the thing is whole.
        note (`str`): JSON file of the staging folder that says what was begun.
        error (`type[Exception]`): what is raised.
        thing (`str`): what needs the folder: "an index".
        stranger (`str`): what is said of a folder of something else: "holds no index".
        busy (`str`): what is said of a folder in use: "Another process is building in {folder}."
    """

    finished: str
    note: str
    error: type[Exception]
    thing: str
    stranger: str
    busy: str

    def check(self, folder: Path) -> None:
        """See that a folder may be used: it is absent or empty, or holds a thing of this kind, finished or not.

        Raises:
            `error`: it is a file, or holds something else.
            [`~lorif_hf.errors.StorageError`]: nothing can be written there, and nothing finished is there.
        """
        with system_errors(folder):
            if folder.exists():
                if not folder.is_dir():
                    raise self.error(f"{folder} is a file; {self.thing} needs a folder.")
                strange = any(path.name != STAGING and not _is_temporary(path) for path in folder.iterdir())
                begun = (folder / STAGING / self.note).exists()
                # Looked for last: where another process has just taken the note away, this is there.
                if (folder / self.finished).exists():
                    return
                if strange and not begun:
                    raise self.error(f"{folder} is not empty and {self.stranger}. Choose another folder.")
            existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
            with tempfile.TemporaryFile(dir=existing) as file:  # what it is allowed, only the system knows
                file.write(b"x")

    def check_free(self, folder: Path) -> None:
        """See that nobody is building in the folder at this moment.

        Raises:
            `error`: another process holds it.
        """
        if (folder / STAGING / "lock").exists():
            with self.held(folder):
                pass

    @contextmanager
    def claimed(
        self, folder: Path, plan: dict[str, Any], another: Callable[[dict[str, Any]], str | None]
    ) -> Iterator[None]:
        """Hold a folder for this process, for as long as the thing is built in it.

        Temporary files of killed writes are removed first. At the end the staging folder goes; after an error it
        stays, and the next call with the same plan goes on from there.

        Args:
            folder (`Path`): one that passed [`~BuildFolder.check`] and holds nothing finished.
            plan (`dict`): JSON values that say what is built; noted where nothing was begun yet.
            another (`Callable`): from the plan that was begun to what the folder holds, with what to do about it ("a
                build of another config. Choose ..."); `None` where it is this plan.

        Raises:
            `error`: another process holds the folder or has just finished in it, or another plan was begun in it.
            [`~lorif_hf.errors.StorageError`]: nothing can be written there.
        """
        staging = folder / STAGING
        with self.held(folder):
            if (folder / self.finished).exists():
                # It was not there when the caller looked. Whoever waits at this lock comes here too, so that nobody
                # works in a staging folder that goes.
                shutil.rmtree(staging, ignore_errors=True)
                raise self.error(f"Another process has just finished {self.thing} in {folder}: call again to use it.")
            self._begin(staging, folder, plan, another)
            remove_left_over(folder, alone=True)
            yield
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(staging, ignore_errors=True)  # where a lock that is held cannot be deleted

    def _begin(
        self, staging: Path, folder: Path, plan: dict[str, Any], another: Callable[[dict[str, Any]], str | None]
    ) -> None:
        """Note the plan, or compare it with the one that was begun."""
        note = staging / self.note
        if not note.exists():
            write_text(note, json.dumps(plan))
            return
        try:
            other = another(json.loads(note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise self.error(
                f"{note} cannot be read ({type(error).__name__}: {error}), so what was begun in {folder} is not "
                "known: delete that folder or choose another."
            ) from error
        if other:
            raise self.error(f"{folder} holds {other}")

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """The lock of the staging folder, which is made where there is none.

        Raises:
            `error`: another process has it.
        """
        staging = folder / STAGING
        lock = FileLock(staging / "lock", timeout=0)
        with system_errors(staging):
            for tries in reversed(range(_TRIES)):
                try:
                    staging.mkdir(parents=True, exist_ok=True)
                    lock.acquire()
                    break
                except Timeout:
                    raise self.error(self.busy.format(folder=folder)) from None
                except NotImplementedError as error:
                    raise StorageError(
                        f"The file system of {folder} has no locks ({error}), so that two processes could write there "
                        "at once. Choose a folder on another disk."
                    ) from error
                except (FileNotFoundError, FileExistsError):  # another process took the folder away between two steps
                    if not tries:
                        raise
        try:
            yield
        finally:
            lock.release()


INDEX_FOLDER = BuildFolder(
    finished=MANIFEST,
    note="build.json",
    error=BuildFolderError,
    thing="an index",
    stranger="holds neither an index nor an unfinished build of one",
    busy="Another process is building the index in {folder}.",
)


def remove_left_over(folder: Path, alone: bool = False) -> None:
    """Remove the temporary files and folders that killed writes left behind.

    Args:
        folder (`Path`): an index's, or another that is built.
        alone (`bool`, *optional*, defaults to `False`): this process holds the folder, so nobody else is writing; else
            what a process that is alive may be writing stays.
    """
    for path in list(folder.rglob("*")):
        if _is_temporary(path) and (alone or not _may_be_written(path)):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None


def _may_be_written(path: Path) -> bool:
    """Whether the process whose temporary file it is, by its name, is alive."""
    named = _TEMPORARY.fullmatch(path.name)
    if named is None or named["process"] is None or os.name != "posix":
        return True
    try:
        if int(named["process"]) == os.getpid():  # in a container every run may have the same number
            return path.stat().st_mtime > _BEGAN
        os.kill(int(named["process"]), 0)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
