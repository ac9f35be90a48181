"""Texts from anybody as HTML: escaped, what is invisible shown, tokens shaded, long ones folded and in the end cut."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape


Runs = Sequence[tuple[str, str]]
"""A text in parts, each with the CSS class that it is shown in, or ""."""

PREVIEW = 360  # characters that a folded text shows
_FOLDED_FROM = 480  # what is little longer than its preview is shown whole
_PREVIEW_LINES = 6
_LEVELS = 4

_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # controls, marks of direction, halves of pairs, line separators
_SHOWN_ANYWAY = {*"\n\t", *map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x8E2, 0x110BD, 0x110CD))}  # have a shape
_JOINERS = {"\u200c", "\u200d"}  # Persian, the scripts of India and emoji need them
_BLANK_LETTERS = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}


@dataclass(frozen=True)
class Passage:
    """A text as it is shown.

    Args:
        whole (`Markup`): the text, or its start.
        preview (`Markup` or `None`): what is shown of it while it is folded; `None`: it is not.
        shown, total (`int`): characters in `whole`, and in the text.
    """

    whole: Markup
    preview: Markup | None
    shown: int
    total: int


def passage(runs: Runs, most_bytes: int, preview: Runs | None = None) -> Passage:
    """A text that folds where it is long, in at most about `most_bytes` of HTML.

    Args:
        runs (`Sequence[tuple[str, str]]`): the text in parts, each with its CSS class.
        most_bytes (`int`): of the whole text; the rest is left out.
        preview (`Sequence[tuple[str, str]]`, *optional*): what a long text shows while it is folded; by default its
            start.
    """
    runs = [(text.replace("\r\n", "\n"), kind) for text, kind in runs]
    whole, shown = markup(runs, most_bytes)
    total = sum(len(text) for text, _ in runs)
    lines = sum(text.count("\n") for text, _ in runs)
    if total <= _FOLDED_FROM and lines <= 2 * _PREVIEW_LINES:
        return Passage(whole, None, shown, total)
    start, _ = markup(preview or _start(runs), most_bytes)
    return Passage(whole, start + "…", shown, total)


def _start(runs: Runs) -> Runs:
    """The first characters and lines, up to the end of a word where one is near."""
    text = "".join(text for text, _ in runs)
    length = min(PREVIEW, len("\n".join(text.split("\n")[:_PREVIEW_LINES])))
    space = text.rfind(" ", length - 30, length)
    length = space if space > 0 else length
    kept = []
    for part, kind in runs:
        kept.append((part[:length], kind))
        length -= len(kept[-1][0])
    return kept


def shaded(tokens: Sequence[str], shares: Sequence[float]) -> Runs:
    """Tokens with a class by their share: "lf-p1" to "lf-p4" of those that add to a score, "lf-n1" to "lf-n4" of those
    that take from it; 4: near the largest of them, either way.

    Example:

    >>> shaded([" Par", "is", " is"], [2.0, -1.0, 0.0])
    [(' Par', 'lf-p4'), ('is', 'lf-n2'), (' is', '')]
    """
    largest = max(map(abs, shares), default=0.0) or 1.0
    runs = []
    for token, share in zip(tokens, shares, strict=False):
        level = round(_LEVELS * abs(share) / largest)
        runs.append((token, f"lf-{'p' if share > 0 else 'n'}{level}" if level else ""))
    return runs


def markup(runs: Runs, most_bytes: int | None = None) -> tuple[Markup, int]:
    """HTML of a text and how many of its characters that shows.

    Args:
        runs (`Sequence[tuple[str, str]]`): its parts, each with its CSS class; neighbours of a class become one.
        most_bytes (`int`, *optional*): about where to stop.
    """
    html: list[str] = []
    size = shown = 0
    for kind, group in groupby(runs, lambda run: run[1]):
        opened = f"<span class={kind}>" if kind else ""
        inside = []
        size += len(opened) and len(opened) + len("</span>")
        for piece, length in _pieces("".join(text for text, _ in group)):
            size += len(piece.encode())
            if most_bytes is not None and size > most_bytes:
                break
            inside.append(piece)
            shown += length
        html.append(opened + "".join(inside) + ("</span>" if kind else ""))
        if most_bytes is not None and size > most_bytes:
            break
    return Markup("".join(html)), shown


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    """Escaped characters, and boxes for runs of one that cannot be seen; with how many characters each stands for."""
    before = ""
    for character, group in groupby(text):
        count = len(list(group))
        if is_hidden(character, before):
            times = f" ×{count}" if count > 1 else ""
            yield f"<span class=lf-esc>U+{ord(character):04X}{times}</span>", count
        else:
            piece = str(escape(character))
            for _ in range(count):
                yield piece, 1
        before = character


def is_hidden(character: str, before: str = "") -> bool:
    """Whether a character has no shape of its own, so that it could hide or turn what a reader sees.

    Args:
        character (`str`): the character.
        before (`str`, *optional*): the one before it; a joiner is what it should be after a letter that is not Latin.
    """
    if character in _JOINERS:
        return not before or before.isascii()
    if "\U000e0100" <= character <= "\U000e01ef" or character in _BLANK_LETTERS:  # selectors that can carry a message
        return True
    return unicodedata.category(character) in _CATEGORIES and character not in _SHOWN_ANYWAY
