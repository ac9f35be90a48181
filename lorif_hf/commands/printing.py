"""What goes to the terminal: tables for people, JSON for programs, errors on a line of their own."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


def printable(text: str) -> str:
    """A text in which nothing is left that a terminal would act on; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_error(message: str) -> None:
    """One line on stderr: "error: ..."."""
    from rich.text import Text

    _console(stderr=True).print(Text.assemble(("error: ", "bold red"), printable(message)), soft_wrap=True)


def print_line(message: str) -> None:
    """A sentence for people, not broken where the terminal ends."""
    from rich.text import Text

    _console().print(Text(printable(message)), soft_wrap=True)


def print_table(table: Any) -> None:
    """A `rich.table.Table`, whose cells must be `Text` where anybody else wrote them."""
    _console().print(table)


def print_values(values: Mapping[str, Any]) -> None:
    """Names and values, a row each."""
    from rich.table import Table
    from rich.text import Text

    from ..reports.attribution import shorten

    table = Table("", "", show_header=False)
    for name, value in values.items():
        table.add_row(name, Text(shorten(str(value), 200)))
    print_table(table)


def print_json(value: Any) -> None:
    """JSON on stdout, in ASCII: what an index says can hold nothing there that a terminal would act on."""
    text = json.dumps(_standard(value), ensure_ascii=True, allow_nan=False, indent=2)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def _standard(value: Any) -> Any:
    """The same with what JSON has no number for (NaN, infinity) as null."""
    if isinstance(value, Mapping):
        return {str(name): _standard(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_standard(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    class Terminal(Console):
        """Says that its pipe was closed, instead of ending the program with a code of its own."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Terminal(stderr=stderr)
