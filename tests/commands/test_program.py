"""The program as a whole: no slip ends in a traceback, and terminals and pipes are served as they like."""

import os
import subprocess
import sys
from importlib.metadata import version

import huggingface_hub.constants
import pytest
from terminal import REPO, refused, run
from tiny import make_gpt2

from lorif_hf import InfluenceIndex


INDEX, MODEL, TMP = "{saved}/index", "{saved}/model", "{tmp}"
BUILD = ["build", MODEL, "{tmp}/rows.txt", "{tmp}/new"]
CAT = "the cat"

SLIPS = {
    # The command line itself
    "unknown command": (2, ["atribute"], "No such command 'atribute'"),
    "unknown option": (2, ["info", INDEX, "--jsn"], "No such option: --jsn"),
    "missing argument": (2, ["verify"], "Missing argument"),
    "no whole number": (2, ["attribute", INDEX, MODEL, CAT, "--top-k", "many"], "--top-k"),
    "nothing asked": (2, ["attribute", INDEX, MODEL], "pass a QUERY"),
    "unknown preset": (2, [*BUILD, "--config", "bset"], "--config must be one of default, smallest, best"),
    "no field": (2, [*BUILD, "--set", "bits"], "--set takes a field and its value, like factor_rank=8, got 'bits'"),
    # The index
    "no index in the folder": (1, ["info", TMP], "{tmp} holds no index: expected a folder with influence_config.json"),
    "no folder": (1, ["verify", "{tmp}/näme"], "{tmp}/näme does not exist: expected a folder"),
    "no repo": (1, ["info", "user/nothing"], "No dataset repo 'user/nothing' that this machine can see"),
    "no revision": (1, ["info", REPO, "--revision", "v9"], "'user/my-index' has no revision 'v9': pass a branch"),
    "no repo id": (1, ["push", INDEX, "a b"], "'a b' is no repo id"),
    "wrong token": (
        1,
        ["push", INDEX, REPO, "--token", "hf_wrong"],
        "The Hub does not accept this token for 'user/my",
    ),
    "push of no index": (1, ["push", TMP, REPO], "{tmp} holds no index"),
    "pull to a full folder": (
        1,
        ["pull", REPO, TMP],
        "{tmp} is not empty and holds neither an index nor an unfinished",
    ),
    "no bank": (1, ["evaluate", "lds", INDEX, INDEX, MODEL], "{saved}/index holds no bank: expected a folder"),
    # The model
    "no model in the folder": (
        1,
        ["attribute", INDEX, TMP, CAT],
        "No model can be loaded from {tmp} (ValueError: Unr",
    ),
    "no model repo": (1, ["attribute", INDEX, "user/none", CAT], "No model can be loaded from user/none"),
    "another model": (1, ["attribute", INDEX, "{tmp}/other", CAT], "The weights of the query's model are not those"),
    "no such device": (1, ["attribute", INDEX, MODEL, CAT, "--device", "mars"], "device='mars' cannot be used here"),
    "no such layer": (1, ["attribute", INDEX, MODEL, CAT, "--modules", "mlpp"], "mlpp"),
    "no model to lay out": (1, ["estimate", TMP], "No model config is found at {tmp} (Unrecognized model"),
    "no size": (1, ["estimate", MODEL, "--flops", "1e9", "--memory", "much"], "memory must be a number of bytes or a"),
    # Queries and outputs
    "empty query": (1, ["attribute", INDEX, MODEL, ""], "Query 0 is empty: it has no token"),
    "no file of queries": (1, ["attribute", INDEX, MODEL, "--queries", "{tmp}/fräge.txt"], "{tmp}/fräge.txt: No such"),
    "broken query": (
        1,
        ["attribute", INDEX, MODEL, "--queries", "{tmp}/broken.jsonl"],
        "{tmp}/broken.jsonl, line 2 is",
    ),
    "nothing on stdin": (1, ["attribute", INDEX, MODEL, "-"], "The standard input holds no query"),
    "no folder of a page": (
        1,
        ["attribute", INDEX, MODEL, CAT, "--html", "{tmp}/no/x.html"],
        "--html: there is no fold",
    ),
    "a folder as a table": (
        1,
        ["attribute", INDEX, MODEL, CAT, "--csv", TMP],
        "--csv: {tmp} is a folder; name a file",
    ),
    # The training set of a build
    "broken row": (1, ["build", MODEL, "{tmp}/broken.jsonl", "{tmp}/new"], "{tmp}/broken.jsonl, line 2 is not JSON"),
    "empty file": (1, ["build", MODEL, "{tmp}/empty.csv", "{tmp}/new"], "{tmp}/empty.csv is empty: expected a file"),
    "no file of rows": (
        1,
        ["build", MODEL, "{tmp}/röws.txt", "{tmp}/new"],
        "{tmp}/röws.txt: No such file or directory",
    ),
    "no dataset repo": (1, ["build", MODEL, "user/none", "{tmp}/new"], "No dataset can be loaded from user/none"),
    "no column": (1, [*BUILD, "--text-column", "body"], "no column 'body': its columns are text, example_id"),
    "half a pair": (1, [*BUILD, "--prompt-column", "text"], "pass --completion-column as well"),
    "no tokenizer": (1, [*BUILD, "--tokenizer", TMP], "No tokenizer can be loaded from {tmp}"),
    "build of no model": (1, ["build", TMP, "{tmp}/rows.txt", "{tmp}/new"], "No model config is found at {tmp}"),
    "index is there": (1, [*BUILD[:3], INDEX], "{saved}/index already holds an index: pass --overwrite"),
    "folder is taken": (1, [*BUILD[:3], TMP], "{tmp} is not empty and holds neither an index nor an unfinished build"),
    "unknown field": (1, [*BUILD, "--set", "rank=3"], "Unknown config field(s) rank; the fields are"),
    "bad value": (1, [*BUILD, "--set", "bits=3"], "bits must be one of 16, 8, 4, 2, 1, got 3"),
    "bad size": (1, [*BUILD, "--max-memory", "much"], 'max_memory must be a number of bytes or a size like "2GB"'),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_gpt2(seed=5).save_pretrained(folder / "other")
    (folder / "rows.txt").write_text("the cat sat\na dog ran\n")
    (folder / "broken.jsonl").write_text('{"text": "the cat"}\n{"text": \n')
    (folder / "empty.csv").touch()
    return folder


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_said_in_a_line_that_names_it_and_its_code(hub, saved, place, slip):
    if slip == "no revision":
        InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token)
    code, arguments, message = SLIPS[slip]
    places = {"tmp": place, "saved": saved}
    said = refused(*(argument.format(**places) for argument in arguments), code=code)
    assert message.format(**places) in said
    assert not (place / "new").exists()


def test_without_the_hub_what_is_not_here_is_told(saved, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the Hub cannot be reached" in refused("info", REPO)
    assert "No model can be loaded from user/model" in refused("attribute", saved / "index", "user/model", CAT)


def test_a_lack_of_memory_is_told_and_a_bug_is_not_hidden(saved, monkeypatch):
    def fails(*_, **__):
        raise failure

    monkeypatch.setattr(InfluenceIndex, "from_pretrained", fails)
    failure = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    assert refused("info", "x").startswith("Memory ran out (CUDA out of memory.")
    failure = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        run("info", "x")


def test_the_version_is_told_with_those_that_matter():
    said = run("--version").stdout
    assert said.startswith(f"lorif-hf {version('lorif-hf')} (Python ") and f"torch {version('torch')}" in said


def test_without_a_command_the_help_is_shown():
    result = run()
    assert result.exit_code == 2 and "attribute" in result.output and "error" not in result.output


# In a process of its own, with commands that take no time: what main() does for terminals and pipes.

STAND_IN = """
import os, sys, warnings
from lorif_hf.commands import main, program
from lorif_hf.commands.printing import print_json, print_line

@program.command()
def many(): print_json(list(range(100_000)))

@program.command()
def table():
    from rich.table import Table
    from lorif_hf.commands.printing import print_table
    rows = Table("x")
    for row in range(2000): rows.add_row(str(row))
    print_table(rows)

@program.command()
def interrupted(): raise KeyboardInterrupt

@program.command()
def bars(): print_line(os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "shown"))

@program.command()
def warned(): warnings.warn("mind \\x1b[31m this"); print_line("\\u00fc\\udcff")

sys.argv[0] = "lorif-hf"
main()
"""


def stand_in(command, shell="{}", **environment):
    line = shell.format(f'"{sys.executable}" -c "$CODE" {command}')
    settings = {**os.environ, "CODE": STAND_IN, "TERM": "dumb"} | environment
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=settings, timeout=120)


@pytest.mark.parametrize("command", ["many", "table"])
def test_a_reader_that_has_seen_enough_gets_no_complaint(command):
    done = stand_in(command, "set -o pipefail; {} | head -n 1")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", ["many", "table", "bars"])
def test_a_full_disk_behind_the_output_is_told(command):
    done = stand_in(command, "{} > /dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "error: the output: No space left on device; make room, or take a place on another disk.\n",
    )


def test_an_interrupt_has_a_code_of_its_own():
    done = stand_in("interrupted")
    assert done.returncode == 130 and done.stderr.startswith("error: interrupted.") and done.stdout == ""


def test_bars_are_for_terminals():
    environment = {"HF_HUB_DISABLE_PROGRESS_BARS": ""}
    assert stand_in("bars", "unset HF_HUB_DISABLE_PROGRESS_BARS; {}", **environment).stdout == "1\n"
    assert stand_in("bars", HF_HUB_DISABLE_PROGRESS_BARS="0").stdout == "0\n"  # whoever wants them, has them


def test_a_warning_is_a_line_and_every_terminal_can_be_written_to():
    done = stand_in("warned", PYTHONIOENCODING="ascii")
    assert done.stderr == "warning: mind \ufffd[31m this\n".encode("ascii", "backslashreplace").decode()
    assert done.returncode == 0 and done.stdout == "\\xfc\\ufffd\n"


@pytest.mark.slow
def test_the_module_runs_and_does_not_show_the_token(hub, tmp_path):
    environment = hub.environment(tmp_path / "home") | {"COLUMNS": "120", "TERM": "dumb"}

    def started(*arguments):
        command = [sys.executable, "-m", "lorif_hf", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)

    shown = run("push", "--help", HF_TOKEN=hub.token).stdout
    assert "HF_TOKEN" in shown and hub.token not in shown
    failed = started("verify", str(tmp_path / "nowhere"))
    assert failed.returncode == 1 and failed.stdout == "" and failed.stderr.startswith("error: ")
