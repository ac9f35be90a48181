"""What went wrong, as a message for who asked: what was expected, and the way out; never a stack."""

import functools
import html
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import LorifError, out_of_memory


logger = logging.getLogger(__name__)

_LONGEST = 1000  # characters of a message
Handler = TypeVar("Handler", bound=Callable[..., Any])


def message_of(error: BaseException) -> str:
    """What is shown of an error: our own words; of somebody else's error its kind alone, since what it says may name
    files of this machine. Gradio shows messages as HTML, so that they are escaped."""
    if isinstance(error, LorifError):
        shown = str(error)
    elif out_of_memory(error):
        shown = "Memory ran out: ask for fewer rows or a shorter answer, or shorten the prompt."
    else:
        shown = f"Something went wrong here ({type(error).__name__}); the log of the app's machine says more."
    shown = shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
    return html.escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in shown))


def told(handler: Handler) -> Handler:
    """A handler of an event whose errors become messages, and whose warnings too; the log has their stacks."""
    import gradio as gr

    def failed(error: Exception) -> Exception:
        if not isinstance(error, LorifError):
            logger.exception("The app failed at a question.")
        return gr.Error(message_of(error), duration=None, print_exception=False)

    @functools.wraps(handler)
    def telling(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except gr.Error:
            raise
        except Exception as error:
            raise failed(error) from None

    @functools.wraps(handler)
    def telling_steps(*arguments: Any) -> Iterator[Any]:
        try:
            yield from handler(*arguments)
        except gr.Error:
            raise
        except Exception as error:
            raise failed(error) from None

    import inspect

    return telling_steps if inspect.isgeneratorfunction(handler) else telling  # type: ignore[return-value]
