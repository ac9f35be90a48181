"""What may reach a terminal: nothing that it would act on; and JSON that every reader takes."""

import json
import math

import pytest

from lorif_hf.commands.printing import print_error, print_json, print_line, print_values, printable


def test_what_a_terminal_acts_on_is_replaced_and_lines_stay():
    assert printable("a\x1b[2J\nb\u202ec\x9b") == "a\ufffd[2J\nb\ufffdc\ufffd"


def test_json_is_ascii_and_has_null_for_what_is_no_number(capsys):
    print_json({"text": "é\x1b\x7f\u202e", "losses": (math.nan, math.inf, 1.5), 3: None})
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": "é\x1b\x7f\u202e", "losses": [None, None, 1.5], "3": None}
    assert out.isascii() and "\x1b" not in out and "\x7f" not in out


@pytest.mark.parametrize("say", [print_line, print_error, lambda text: print_values({"name": text})])
def test_markup_and_escapes_do_nothing(capsys, say):
    say("[red]x[/] :warning: \x1b[31m")
    captured = capsys.readouterr()
    assert "[red]x[/] :warning:" in captured.out + captured.err and "\x1b" not in captured.out + captured.err


def test_a_long_line_is_not_broken(capsys):
    print_line("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"
