"""The program `lorif-hf`: its commands, and what becomes of errors."""

import os
import platform
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .app import app
from .attribute import attribute
from .build import build
from .estimate import estimate
from .evaluate import evaluate
from .info import info
from .printing import print_error, printable
from .pull import pull
from .push import push
from .slips import message_of
from .verify import verify


SLIP, USAGE, INTERRUPTED = 1, 2, 130
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Of click, or of the copy of it that typer has."""

_NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


class Program(TyperGroup):
    """What a person can do wrong ends with one line and an exit code; a traceback is a bug of ours."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            code = super().main(*arguments, **{**options, "standalone_mode": False})
        except UsageError as error:
            _print_usage(error)
            code = USAGE
        except typer.Abort:
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:  # whoever reads has seen enough; files are written before anything is printed
            _close_output()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            print_error("interrupted. What was finished is kept: the same command goes on.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message = message_of(error)
            if message is None:
                raise
            print_error(message)
            _close_output()
            raise typer.Exit(SLIP) from None


program = typer.Typer(
    cls=Program,
    help="Which training examples made my model say this?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (build, attribute, info, verify, push, pull, estimate):
    program.command()(command)
program.add_typer(evaluate, name="evaluate")
program.command()(app)


def _print_usage(error: Any) -> None:
    """What is wrong with the arguments, and where the right ones are told; for a command without any, its help."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message, nl=bool(message))  # none where typer has printed it already
        return
    stop = "" if message.endswith((".", "?")) else "."
    context = error.ctx
    print_error(message + (stop if context is None else f"{stop} See: {context.command_path} --help"))


def _version(asked: bool) -> None:
    """What an issue needs to say, without importing any of it."""
    if asked:
        libraries = ("torch", "transformers", "datasets", "huggingface_hub", "peft")
        known = [f"Python {platform.python_version()}"]
        for library in libraries:
            with suppress(PackageNotFoundError):
                known.append(f"{library} {version(library)}")
        typer.echo(f"lorif-hf {version('lorif-hf')} ({', '.join(known)})")
        raise typer.Exit()


@program.callback()
def _before(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """What goes before a command."""


def main() -> None:
    """The entry point: what a terminal needs, before any library is imported."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode
    if not sys.stderr.isatty():
        for name in _NO_BARS:
            os.environ.setdefault(name, "1")
    warnings.formatwarning = _as_line  # type: ignore[assignment]
    try:
        program()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _as_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning for somebody who did not write the code that it points at."""
    return f"warning: {printable(str(message))}\n"


def _close_output() -> None:
    """Nothing more goes to an output that takes none: Python would try once more at its end, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
