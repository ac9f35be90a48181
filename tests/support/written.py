"""What pages tell a reader to type: commands for a shell, and blocks of Python."""

import re
import shlex
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = "make", "python", "pip", "pytest", "lorif-hf", "accelerate", "torchrun", ".ci/run"
TAKE_NOTHING = (".ci/run",)  # commands as they stand; the name of another program alone is no command

_FENCE = re.compile(r"^( *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^\1```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n)+")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_SHELLS = "", "bash", "sh", "shell", "console"


def pages() -> dict[str, str]:
    """The text of each page that people read, by its path in the repository."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
    paths += [path for folder in ("docs", "examples") for path in sorted((ROOT / folder).rglob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def python_blocks(text: str) -> list[str]:
    """The fences of Python, from top to bottom."""
    return [fence["code"] for fence in _FENCE.finditer(text) if fence["language"] == "python"]


def shell_commands(text: str) -> list[str]:
    """The commands of a page, each once and without comments: in fences, in indented blocks, in backticks.

    A program of a virtual environment is that program; what other programs are told to do is left out.
    """
    prose = _FENCE.sub("\n", text)
    blocks = [fence["code"] for fence in _FENCE.finditer(text) if fence["language"] in _SHELLS]
    blocks += [block[0] for block in _INDENTED.finditer(prose)]
    lines = [line for block in blocks for line in re.sub(r" *\\\n\s*", " ", block).splitlines()]
    return list(dict.fromkeys(filter(None, map(_command, [*lines, *_SPAN.findall(prose)]))))


def _command(line: str) -> str:
    """The command of a line; nothing where it holds none. `cat FILE | COMMAND` is `COMMAND < FILE`."""
    try:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
    except ValueError:  # a quotation that does not end: prose
        return ""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables
        words = words[1:]
    given = ["<", words[1]] if words[:1] == ["cat"] and words[2:3] == ["|"] else []
    words = words[3:] if given else words
    if not words:
        return ""
    words[0] = re.sub(r"^\.venv(-\w+)?/bin/", "", words[0])
    words[0] = "python" if words[0] == "python3" else words[0]
    if words[:2] == ["python", "-m"] and words[2:3] in (["pip"], ["pytest"]):
        words = words[2:]
    known = words[0] in TAKE_NOTHING or (words[0] in PROGRAMS and len(words) > 1)
    return " ".join([shlex.join(words), *given]) if known else ""
