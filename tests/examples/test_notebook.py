"""The notebook, executed: each code cell in turn, and what a notebook would show of its last expression."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]

# What a kernel does of a cell, in the order in which it looks for a way to show its value.
KERNEL = """
def shown(value):
    for form in ("_repr_html_", "_repr_png_"):
        made = getattr(value, form)() if hasattr(value, form) else None
        if made is not None:  # a figure has a page only in a browser's backend
            return made
    return repr(value)
"""


def as_script(cells):
    """The cells as one script, which prints each value that a notebook would show, with the number of its cell."""
    lines = [KERNEL]
    for number, cell in enumerate(cells):
        body = ast.parse(cell).body
        if isinstance(body[-1], ast.Expr):
            last = ast.unparse(body.pop())
            lines += [ast.unparse(ast.Module(body, [])), f"print('<<{number}>>', shown({last}))"]
        else:
            lines.append(cell)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    small, changed = re.subn(r"passages, epochs = \d+, \d+", "passages, epochs = 150, 1", "\0".join(CODE))
    assert changed == 1, "the cell of parameters has gone"
    (folder / "cells.py").write_text(as_script(small.split("\0")), encoding="utf-8")
    done = subprocess.run([sys.executable, "cells.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "notebook-output" / "attribution.html").is_file()
    return done.stdout


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_promises(output):
    values = dict(re.findall(r"<<(\d+)>> (.*?)(?=<<\d+>>|\Z)", output, flags=re.DOTALL))
    asked = next(number for number, cell in enumerate(CODE) if "index.attribute(" in cell)
    assert "InfluenceIndex('notebook-index', num_examples=150" in values[str(asked - 1)]
    assert "yield" in values[str(asked)] and values[str(asked)].count("<tr") >= 5
    assert "Figure" in values[str(asked + 1)] and "<table" in values[str(asked + 2)]
