"""Which errors are told in a line, and in which words."""

import errno
import os

import pytest

from lorif_hf.commands.slips import in_a_line, message_of, told_as
from lorif_hf.errors import DatasetError, LorifError, QueryError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LorifError("Row 3 is empty: fill it."), "Row 3 is empty: fill it."),
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x.txt"),
            "x.txt: No such file or directory; check",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the output: No space left on device; make room"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "x"), "x: Input/output error; mend that and call again."),
        (OSError("only words\n  and more"), "only words and more"),
        (MemoryError(), "Memory ran out (MemoryError). Take a smaller --batch-size"),
        (RuntimeError("CUDA out of memory. Tried"), "Memory ran out (CUDA out of memory. Tried)"),
    ],
)
def test_a_slip_is_told_with_its_way_out(error, message):
    assert message_of(error).startswith(message)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError()])
def test_a_bug_is_no_slip(error):
    assert message_of(error) is None


def test_what_another_library_raises_becomes_an_error_of_ours_that_keeps_its_words():
    with pytest.raises(DatasetError, match=r"^No dataset \(bad split\). Check the name.$") as caught:
        with told_as(DatasetError, "No dataset", "Check the name."):
            raise ValueError("bad\nsplit")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [QueryError("ours"), MemoryError(), KeyboardInterrupt()], ids=repr)
def test_our_own_errors_a_lack_of_memory_and_an_interrupt_pass(error):
    with pytest.raises(type(error)) as caught, told_as(DatasetError, "x", "y"):
        raise error
    assert caught.value is error


def test_long_words_are_cut():
    assert in_a_line(ValueError("a" * 1000)) == "a" * 399 + "…" and in_a_line(ValueError()) == "ValueError"
