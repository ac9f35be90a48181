"""Real text without a download: the docstrings of Python's standard library, read from its sources."""

import ast
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Docstring:
    """The first paragraph of a docstring, and what it is of.

    Args:
        package (`str`): of the standard library, as "asyncio".
        name (`str`): the function, method or class, as "Queue.get".
        text (`str`): the paragraph, on one line.
    """

    package: str
    name: str
    text: str


def docstrings(package: str, least_words: int = 6, most_words: int = 40) -> list[Docstring]:
    """The docstrings of a package or module, each text once, in a shuffled order that is always the same.

    Which there are depends on the version of Python, and so do the figures that the examples print.

    Args:
        package (`str`): its name.
        least_words, most_words (`int`, *optional*): shorter ones say nothing, longer ones are cut.
    """
    path = Path(sysconfig.get_paths()["stdlib"]) / package
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    texts: dict[str, Docstring] = {}
    for file in files:
        if not {"test", "tests", "idle_test"} & set(file.parts):
            for name, text in _docstrings(ast.parse(file.read_text(encoding="utf-8")), ""):
                words = text.split("\n\n")[0].split()
                if len(words) >= least_words and words[0] != ">>>":
                    line = " ".join(words[:most_words])
                    texts.setdefault(line, Docstring(package, name, line))
    shuffled = list(texts.values())
    random.Random(package).shuffle(shuffled)
    return shuffled


def _docstrings(node: ast.AST, prefix: str) -> list[tuple[str, str]]:
    """(qualified name, docstring) of what is defined in a node."""
    pairs = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if text := ast.get_docstring(child):
                pairs.append((prefix + child.name, text))
            pairs += _docstrings(child, f"{prefix}{child.name}.")
        else:
            pairs += _docstrings(child, prefix)
    return pairs
