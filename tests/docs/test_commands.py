"""Every command that a page names is run: as it stands, in a small form, or by the test that is named here."""

import ast
import importlib.util
import io
import os
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from written import ROOT, pages, shell_commands


if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

sys.path.insert(0, str(ROOT))  # the benchmarks are no part of the package
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = {page: commands for page, text in pages().items() if (commands := shell_commands(text))}

# What takes too long to be run as it stands, and the test that runs it in a small form. A command is looked up by its
# first words.
BENCHMARKS = {
    "check": "small_runs.py::test_recording",
    "curvature": "small_runs.py::test_curvature",
    "direct": "small_runs.py::test_quality",
    "end_to_end": "small_runs.py::test_end_to_end",
    "estimate": "estimate.py::test_every_phase_of_every_shape_is_compared",
    "fidelity": "fidelity.py::test_a_whole_run",
    "gpu": "gpu.py::test_a_stage_that_fails_leaves_the_next_its_turn",
    "index_size": "small_runs.py::test_index_size",
    "lora_others": "small_runs.py::test_lora_others",
    "minilm": "beds.py::test_without_minilms_weights_it_is_said_how_to_get_them",
    "preferences": "small_runs.py::test_preferences",
    "quality": "small_runs.py::test_quality",
    "query": "small_runs.py::test_query",
    "recording": "small_runs.py::test_recording",
    "references": "small_runs.py::test_references",
    "report": "small_runs.py::test_report",
    "scaling": "scaling.py::test_it_runs_and_its_tables_go_into_the_docs",
    "support": "support.py::test_what_is_held_is_what_was_trained",
    "sweep": "sweep.py::test_an_index_equals_autograd_or_is_refused_before_it_is_recorded",
    "wide": "wide.py::test_every_part_runs_and_is_in_the_file",
}
TESTED_BY = {
    ".ci/run": "tests/docs/test_commands.py::test_make_test_runs_every_test",
    "make docs": "tests/docs/test_site.py::test_make_docs_builds_a_site_without_a_warning",
    "make test": "tests/docs/test_commands.py::test_make_test_runs_every_test",
    **{f"python -m benchmarks.{name}": f"tests/benchmarks/test_{test}" for name, test in BENCHMARKS.items()},
}
STANDS_FOR = {"MODEL": "my-model", "N": "1000"}  # words of a page that a reader replaces
WRITES = "--csv", "--html"  # options that name a file to write


def with_program(*programs):
    """The commands of these programs, each once, with the first page that has it."""
    named = {}
    for page, commands in COMMANDS.items():
        for command in commands:
            if shlex.split(command)[0] in programs:
                named.setdefault(command, page)
    return [pytest.param(page, command, id=command) for command, page in named.items()]


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def recipe_of(target):
    return (ROOT / "Makefile").read_text(encoding="utf-8").partition(f"\n{target}:")[2].partition("\n\n")[0]


def is_tested(command):
    """Whether a test runs a command: that of the example, else the one that is known by the command's first words."""
    command = recipe_of("demo") if command == "make demo" else command
    example = re.search(r"examples[/.](\w+)", command)
    if example:
        return (ROOT / "tests" / "examples" / f"test_{example[1]}.py").is_file()
    return any(f"{command} ".startswith(f"{first} ") for first in TESTED_BY)


UNTESTED = (
    "no test runs `{}`: write one that runs it in a small form, and name it in TESTED_BY of " + Path(__file__).name
)


def run_console(words):
    """The exit status of `lorif-hf`, called as its entry point is."""
    module, name = PROJECT["scripts"]["lorif-hf"].split(":")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lorif-hf", *words])
        try:
            getattr(importlib.import_module(module), name)()
        except SystemExit as stop:
            return stop.code or 0
    return 0


def test_every_test_that_is_named_here_is_there():
    for command, test in TESTED_BY.items():
        path, name = test.split("::")
        assert name in functions_of(ROOT / path), f"{path} has no {name}, which is to run `{command}`"


@pytest.mark.parametrize("page, command", with_program("make", ".ci/run"))
def test_make(page, command):
    assert is_tested(command), UNTESTED.format(command)
    if command != ".ci/run":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(shlex.split(command)[1:]) <= set(targets), f"{page} names `{command}`"


def test_make_test_runs_every_test():
    """This is one of them. CI runs the same command."""
    assert recipe_of("test").endswith("$(BIN)/python -m pytest")
    script = ROOT / ".ci" / "run"
    assert script.read_text(encoding="utf-8").endswith("exec make test\n") and os.access(script, os.X_OK)


@pytest.mark.parametrize("page, command", with_program("python"))
def test_the_arguments_of_a_script_are_those_that_it_takes(page, command):
    """All but the run itself, which takes minutes to hours: that is the small run of another test."""
    words = shlex.split(command)
    assert is_tested(command), UNTESTED.format(command)
    if words[1:2] != ["-m"]:
        assert (ROOT / words[1]).is_file(), f"{page} names {words[1]}"
        return
    if words[2].startswith("examples."):
        assert importlib.util.find_spec(words[2]), f"{page} names {words[2]}"
        return
    module = importlib.import_module(words[2])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[2]}.__main__")
    app = typer.Typer(add_completion=False)
    app.command()(module.main)
    given, named = [STANDS_FOR.get(word, word) for word in words[3:]], len(words) == 3
    try:  # without arguments it may be meant with any
        typer.main.get_command(app).make_context(words[2], given, resilient_parsing=named)
    except typer.BadParameter as error:
        pytest.fail(f"{page}: `{command}`: {error.format_message()}")


@pytest.mark.parametrize("page, command", with_program("pytest"))
def test_what_pytest_is_to_run_is_there(page, command):
    words = shlex.split(command)
    paths = [ROOT / word for word in words if word.startswith("tests")]
    assert paths and all(path.exists() for path in paths), f"{page} names `{command}`"
    if "-k" in words:
        assert words[words.index("-k") + 1] in paths[0].read_text(encoding="utf-8"), f"{page} names `{command}`"


@pytest.mark.parametrize("page, command", with_program("pip"))
def test_what_pip_is_to_install_is_there(page, command):
    words = [word for word in shlex.split(command)[2:] if not word.startswith("-")]
    assert words, f"{page} names `{command}`"
    for word in words:
        if word.startswith("."):
            continue
        assert Requirement(word).name, f"{page} names `{command}`"


@pytest.mark.parametrize("page", pages())
def test_the_extras_that_a_page_names_are_there(page):
    named = re.findall(r"(?:lorif-hf|[\"'\s]\.)\[([\w,-]+)\]", pages()[page])
    unknown = {extra for extras in named for extra in extras.split(",")} - PROJECT["optional-dependencies"].keys()
    assert not unknown, f"{page} names the extra {', '.join(unknown)}"


CONSOLE = {page: [line for line in lines if line.startswith("lorif-hf ")] for page, lines in COMMANDS.items()}


@pytest.mark.parametrize("page", [page for page, lines in CONSOLE.items() if lines])
def test_the_command_line(page, folder, served, capsys, monkeypatch):
    """One after the other, as a reader would type them. A command without arguments is named, not typed."""
    for line in CONSOLE[page]:
        typed, _, file = line.partition(" < ")
        words = [STANDS_FOR.get(word, word) for word in shlex.split(typed)[1:]]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(file).read_bytes() if file else b"")))
        status = run_console(words if len(words) > 1 else [*words, "--help"])
        shown = capsys.readouterr()
        assert status == 0, f"{page}: `{line}` ends with status {status}: {shown.err or shown.out}"
        for word, value in pairwise(words):
            if word in WRITES:
                assert Path(value).stat().st_size > 0, f"{page}: `{line}` wrote no {value}"
