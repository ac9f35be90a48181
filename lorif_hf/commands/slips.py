"""What of all errors is a person's slip, or the machine's, and how it is told in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LorifError, out_of_memory


_LONGEST = 400  # characters of another library's own words
_WAY_OUT = {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name: a part of it is a file",
    errno.EISDIR: "name a file in it",
    errno.EACCES: "get leave to use it, or take another place",
    errno.EPERM: "get leave to use it, or take another place",
    errno.EROFS: "take a place on another disk",
    errno.ENOSPC: "make room, or take a place on another disk",
    errno.EDQUOT: "make room, or take a place on another disk",
    errno.ENAMETOOLONG: "take a shorter name",
}


def message_of(error: BaseException) -> str | None:
    """What is told of an error, with the way out; `None`: it is nobody's slip, but a bug.

    Example:

    ```python
    >>> message_of(FileNotFoundError(2, "No such file or directory", "rows.txt"))
    'rows.txt: No such file or directory; check the name.'
    ```
    """
    if isinstance(error, LorifError):
        return str(error)
    if out_of_memory(error):
        return (
            f"Memory ran out ({in_a_line(error)}). Take a smaller --batch-size, or shorter texts; `lorif-hf estimate` "
            "says what a build needs."
        )
    if not isinstance(error, OSError):
        return None
    if error.strerror is None:
        return in_a_line(error)
    where = "the output" if error.filename is None else str(error.filename)
    way_out = _WAY_OUT.get(error.errno or 0, "mend that and call again")
    return f"{where}: {error.strerror}; {way_out}."


@contextmanager
def told_as(kind: type[LorifError], what: str, way_out: str) -> Iterator[None]:
    """Make whatever another library raises a typed error of ours: "`what` (its words). `way_out`".

    Args:
        kind (`type[LorifError]`): the error that is raised.
        what (`str`): what could not be done, and with which name.
        way_out (`str`): what to do.
    """
    try:
        yield
    except LorifError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise kind(f"{what} ({in_a_line(error)}). {way_out}") from error


def in_a_line(error: BaseException) -> str:
    """Another library's words, cut to a line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
