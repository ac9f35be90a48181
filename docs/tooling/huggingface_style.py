"""Docstrings in Hugging Face's style, rewritten in Google's style, which mkdocstrings reads. Text in, text out."""

import ast
import re
from collections.abc import Callable, Iterable


Link = Callable[[str, str], str]
"""Makes what the page shows of a reference: its target, and the text to show."""

_LINK = re.compile(r"\[`(~?)([\w.]+)`\](?!\()")
_PARAMETER = re.compile(r"(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \((?P<type>.*?)\))?:(?: (?P<text>.*))?")
_RAISED = re.compile(r"(?:\[?`~?[\w.]+`\]?(?:, )?)+")
_RETURNED = re.compile(r"\[?`~?(?P<type>[^`]+)`\]?: (?P<text>.*)")
_SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")


def google_style(docstring: str, link: Link, *, parameters: Iterable[str] = (), returns: str | None = None) -> str:
    """A docstring in Google's style.

    Args:
        docstring (`str`): without the indentation that it has in the source.
        link (`Callable`): makes the text of each reference like [`~module.name`].
        parameters (`Iterable[str]`, *optional*): names in the signature, with their stars.
        returns (`str`, *optional*): the annotation of what is returned.
    """
    starred = {name.lstrip("*"): name for name in parameters}
    result: list[str] = []
    item: list[str] = []
    section = ""
    for line in [*docstring.splitlines(), ""]:
        inside = bool(section) and line.startswith("    ")
        if item and not (inside and _goes_on(section, line)):
            result += [_linked(one, link) for one in _entries(section, item, starred, returns)]
            item = []
        if inside:
            item.append(f"        {line.strip()}" if item else line.strip())
            continue
        if line.strip():
            section = line if line in _SECTIONS else ""
        result.append(_linked(line, link))
    return "\n".join(result).rstrip()


def _goes_on(section: str, line: str) -> bool:
    """Whether a line of a section goes on with the item before it."""
    begins = {"Returns:": False, "Raises:": bool(_RAISED.match(line.strip()))}.get(section, True)
    return line.startswith(" " * 8) or not begins


def _entries(section: str, item: list[str], starred: dict[str, str], returns: str | None) -> list[str]:
    """The lines of an item; of one that is about several names, once for each."""
    first, rest = item[0], item[1:]
    if section == "Returns:":
        found = _RETURNED.fullmatch(first)
        kind, text = (found["type"], found["text"]) if found else (returns, first)
        return [f"    {kind}: {text}" if kind else f"    {text}", *(line[4:] for line in rest)]
    if section == "Raises:":
        named = _RAISED.match(first)
        names = re.findall(r"[\w.]+", named[0]) if named else [first]
        text = first[named.end() :].lstrip(":. ") if named else ""
        return [line for name in names for line in (f"    {name}: {text}".rstrip(), *rest)]
    found = _PARAMETER.fullmatch(first)
    if found is None:
        return [f"    {first}", *rest]
    kind = _annotation(found["type"] or "")
    names = [starred.get(name, name) for name in found["names"].split(", ")]
    return [line for name in names for line in (f"    {name}{kind}: {found['text'] or ''}".rstrip(), *rest)]


def _annotation(kind: str) -> str:
    """Of "`str` or `Path`, *optional*, defaults to `x`" this: " (str | Path)". The default stands in the signature."""
    plain = re.sub(r",? ?\*optional\*.*", "", kind).replace("`", "").replace(" or ", " | ")
    try:
        ast.parse(plain, mode="eval")
    except SyntaxError:
        return ""
    return f" ({plain})"


def _linked(text: str, link: Link) -> str:
    return _LINK.sub(lambda found: link(found[2], found[2].rpartition(".")[2] if found[1] else found[2]), text)
