"""What the system says where it cannot write, as our own errors: which file, why, and the way out."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DiskFullError, LorifError, StorageError


_NO_ROOM = {
    errno.ENOSPC: ("The disk is full", "make room"),
    errno.EDQUOT: ("Your quota of the disk is used up", "make room"),
    errno.EFBIG: ("The file is larger than the file system or `ulimit -f` allows", "raise the limit"),
}
_REFUSED = {
    errno.EROFS: "the disk is mounted read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
}
_KEPT = "What was finished before it is kept"


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a file or folder that is being written into our own errors.

    Raises:
        [`~lorif_hf.errors.DiskFullError`]: there is no room for it.
        [`~lorif_hf.errors.StorageError`]: the system refused it for another reason.
    """
    try:
        yield
    except LorifError:
        raise
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        if number in _NO_ROOM:
            why, way_out = _NO_ROOM[number]
            raise DiskFullError(
                f"{why}: {path} could not be written. {_KEPT}; {way_out} and call again to go on."
            ) from error
        if number in _REFUSED:
            raise StorageError(
                f"{path} cannot be written: {_REFUSED[number]}. {_KEPT}; get leave to write and call again to go on, "
                "or choose another folder."
            ) from error
        raise StorageError(
            f"{path} could not be written: {os.strerror(number)} ({type(error).__name__}: {error}). {_KEPT}; mend "
            "that and call again to go on, or choose another folder."
        ) from error


def _number(error: Exception) -> int | None:
    """The system's number of an error. Of one that Rust raised (safetensors, tokenizers) only the text tells."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None
