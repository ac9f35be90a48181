"""An index in the place of another: built beside it, and put there when it is whole."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LorifError
from ..storage.claim import INDEX_FOLDER
from ..storage.files import verified
from ..storage.layout import FOLDERS, MANIFEST, STAGING, read_manifest
from ..storage.system_errors import system_errors
from .builder import IndexBuilder


_INDEX, _REPLACED = "index", "replaced"  # in the folder beside: the new index, and the old one on its way out
_LOCK = "lock"


def beside(folder: Path) -> Path:
    """The hidden folder next to an index's, in which another is built that takes its place."""
    real = folder.resolve()  # a link stays one: what it leads to is replaced
    return real.with_name(f".{real.name}.overwrite")


def folder_to_build(folder: Path, overwrite: bool) -> Path:
    """Where the index of `folder` is built: there, or beside an index that stays until it is replaced."""
    working = beside(folder)
    if overwrite and ((folder / MANIFEST).exists() or working.exists()):
        return working / _INDEX
    return folder


@contextmanager
def taking_place(builder: IndexBuilder) -> Iterator[bool]:
    """Make room for a build that may overwrite, and put its index in its place at the end.

    An unfinished build of something else, where this one goes, is thrown away. An old index is left as it is until
    the block has ended without an error; then the new one takes its place by two renames, with what else lay in the
    old folder. A process that is killed between the two leaves both: the next build that may overwrite goes on there.

    Args:
        builder (`IndexBuilder`): the build.

    Yields:
        `bool`: whether there is anything to build. The index of this very build may be there, whole: it stays.

    Raises:
        [`~lorif_hf.errors.BuildFolderError`]: another process is building there.
        [`~lorif_hf.errors.StorageError`]: the folder cannot be renamed.
    """
    folder, place = builder.folder, builder.place
    if not builder.options.overwrite:
        yield True
        return
    builder.prepare()
    if folder == place:
        if (place / STAGING).exists():
            with INDEX_FOLDER.held(place):
                _discard_another(builder)
        yield True
        return
    working, place = folder.parent, place.resolve()
    with INDEX_FOLDER.held(working):
        with system_errors(place):
            _settle(working, place)
            missing = not _is_built(place, builder)
            _discard_another(builder)
        yield missing
        with system_errors(place):
            if missing and place.exists():
                place.rename(working / _REPLACED)
            if missing:
                folder.rename(place)
            _settle(working, place)
            shutil.rmtree(working, ignore_errors=True)
    shutil.rmtree(working, ignore_errors=True)  # where a lock that is held cannot be deleted


def _settle(working: Path, place: Path) -> None:
    """Finish with an index that was being replaced: it goes back where no other has come, else its own files go."""
    replaced = working / _REPLACED
    if not replaced.exists():
        return
    if not place.exists():
        replaced.rename(place)
        return
    for path in replaced.iterdir():
        if path.name not in {*FOLDERS, STAGING, MANIFEST} and not (place / path.name).exists():
            path.rename(place / path.name)
    shutil.rmtree(replaced, ignore_errors=True)


def _discard_another(builder: IndexBuilder) -> None:
    """Throw away what was begun, or finished beside the old index, of another build than this."""
    folder = builder.folder
    if folder == builder.place and (folder / MANIFEST).exists():
        return  # another process has just finished it
    if _begun(folder) in (None, builder.fingerprint):
        return
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in (folder / STAGING).glob("*"):
        if path.name != _LOCK:
            path.unlink()


def _is_built(place: Path, builder: IndexBuilder) -> bool:
    """Whether a folder holds the index of this very build, every file as it was written."""
    try:
        manifest = read_manifest(place)
        if manifest.build != builder.fingerprint or bool(manifest.tokenizer) != (builder.processing_class is not None):
            return False
        for entry in manifest.files:
            verified(place, entry)
    except LorifError:
        return False
    return True


def _begun(folder: Path) -> str | None:
    """The fingerprint of the build in a folder; "" where it cannot be read, `None` where there is none."""
    note = folder / STAGING / INDEX_FOLDER.note
    try:
        if (folder / MANIFEST).exists():
            return read_manifest(folder).build
        return str(json.loads(note.read_text(encoding="utf-8"))["build"]) if note.exists() else None
    except (LorifError, OSError, ValueError, TypeError, LookupError):
        return ""
