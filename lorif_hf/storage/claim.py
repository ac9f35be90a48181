"""A folder in which something is built by one process at a time; after a crash, the next one finishes it.

Its staging folder holds a lock, a note of what was begun, and the unfinished pieces.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BuildFolderError
from .files import write_text
from .layout import MANIFEST, STAGING


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
        """
        if not folder.exists():
            return
        if not folder.is_dir():
            raise self.error(f"{folder} is a file; {self.thing} needs a folder.")
        ours = (folder / self.finished).exists() or (folder / STAGING / self.note).exists()
        if not ours and any(path.name != STAGING for path in folder.iterdir()):
            raise self.error(f"{folder} is not empty and {self.stranger}. Choose another folder.")

    @contextmanager
    def claimed(
        self, folder: Path, plan: dict[str, Any], another: Callable[[dict[str, Any]], str | None]
    ) -> Iterator[None]:
        """Hold a folder for this process, for as long as the thing is built in it.

        Temporary files of killed writes are removed first. At the end the staging folder goes; after an error it
        stays, and the next call with the same plan goes on from there.

        Args:
            folder (`Path`): one that passed [`~BuildFolder.check`].
            plan (`dict`): JSON values that say what is built; noted where nothing was begun yet.
            another (`Callable`): from the plan that was begun to what the folder holds, with what to do about it ("a
                build of another config. Choose ..."); `None` where it is this plan.

        Raises:
            `error`: another process holds the folder, or another plan was begun in it.
        """
        staging = folder / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(FileLock(staging / "lock", timeout=0))
            except Timeout:
                raise self.error(self.busy.format(folder=folder)) from None
            note = staging / self.note
            if not note.exists():
                write_text(note, json.dumps(plan))
            elif other := another(json.loads(note.read_text(encoding="utf-8"))):
                raise self.error(f"{folder} holds {other}")
            for path in folder.rglob("*.tmp"):
                path.unlink()
            yield
        shutil.rmtree(staging)


INDEX_FOLDER = BuildFolder(
    finished=MANIFEST,
    note="build.json",
    error=BuildFolderError,
    thing="an index",
    stranger="holds neither an index nor an unfinished build of one",
    busy="Another process is building the index in {folder}.",
)
