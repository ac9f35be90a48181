"""Errors as messages."""

import pytest

from lorif_hf.app.messages import message_of, told
from lorif_hf.errors import QueryError


gradio = pytest.importorskip("gradio", reason="Gradio is not installed (pip install 'lorif-hf[app]')")


@pytest.mark.parametrize(
    "error, shown",
    [
        (QueryError("no <b>text</b> \x07here"), "no &lt;b&gt;text&lt;/b&gt; \ufffdhere"),
        (QueryError("x" * 3000), "x" * 999 + "…"),
        (MemoryError("cannot allocate /root/secret"), "Memory ran out: ask for fewer rows or a shorter answer"),
        (OSError("/root/secret"), "Something went wrong here (OSError); the log of the app's machine says more."),
    ],
    ids=["ours", "long", "memory", "others"],
)
def test_a_message_says_what_we_wrote_and_nothing_of_this_machine(error, shown):
    message = message_of(error)
    assert shown.replace("'", "&#x27;") in message and "secret" not in message


def test_an_error_of_a_handler_becomes_a_message_and_its_stack_stays_here(caplog):
    def handler(value):
        raise KeyError("/root/secret")

    def steps(value):
        yield value
        raise QueryError("shorten it")

    with pytest.raises(gradio.Error) as error:
        told(handler)(1)
    assert "KeyError" in error.value.message and "secret" not in error.value.message
    assert error.value.print_exception is False and error.value.duration is None
    assert "/root/secret" in caplog.text
    caplog.clear()
    made = told(steps)(1)
    assert next(made) == 1
    with pytest.raises(gradio.Error) as error:
        next(made)
    assert error.value.message == "shorten it" and not caplog.text
