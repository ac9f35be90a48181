"""Files that a command writes: looked at before the work, replaced when they are whole."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import StorageError


def check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """See that every output can be written, before anything is computed for it.

    Args:
        outputs (`Mapping`): by option, like "--html"; `None` where it was not given.

    Raises:
        [`~lorif_hf.errors.StorageError`]: names the option and the place.
    """
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        folder = path.absolute().parent
        if path.is_dir():
            raise StorageError(f"{option}: {path} is a folder; name a file in it.")
        if not folder.is_dir():
            raise StorageError(f"{option}: there is no folder {folder} to write {path.name} into; make it first.")
        if not os.access(path if _is_device(path) else folder, os.W_OK):
            raise StorageError(f"{option}: nothing can be written in {folder}; get leave to, or name another folder.")
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise StorageError(f"{option}: {path} is what {other} writes already; name another file.")


def write_output(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; what was there stays until then.

    Args:
        path (`Path`): the file, or a device like /dev/stdout.
        write (`Callable`): fills the file that it is given.

    Raises:
        [`~lorif_hf.errors.DiskFullError`], [`~lorif_hf.errors.StorageError`].
    """
    from ..storage.files import write_atomically
    from ..storage.system_errors import system_errors

    if _is_device(path):
        with system_errors(path):
            write(path)
    else:
        write_atomically(path.resolve(), write)  # of a link, the file that it leads to


def _is_device(path: Path) -> bool:
    """Whether it is there and neither a file nor a folder: /dev/stdout, a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
