"""Rows that say nearly the same: exact copies, and texts that differ in a few words."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


SHINGLE = 5
"""Words of a shingle: neighbours in a text."""

OVERLAP = 0.8
"""Jaccard index of two texts' shingles from which on they say nearly the same."""

_COMPARED = 100_000  # characters of a text
# Words in the sense of \w, and each character of scripts that write without spaces as a word of its own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class _Read:
    """A text as it is compared."""

    words: tuple[str, ...]
    shingles: frozenset[tuple[str, ...]]


class NearDuplicates:
    """Tells which texts are near-duplicates: equal but for case, white space, punctuation and Unicode's ways to write
    the same, or with at least 0.8 (`OVERLAP`) of their shingles of 5 words (`SHINGLE`) in common (Jaccard).

    Of a text of fewer words than a shingle has, all must be equal. A row without any word is nobody's duplicate.
    The first 100,000 characters are compared.

    Args:
        texts (`Mapping[int, str | None]`): by row.

    Example:

    >>> texts = {0: "Paris, the capital.", 1: "paris the  capital", 2: "Rome, the capital."}
    >>> NearDuplicates(texts).first_like(1, [2, 0])
    0

    Source: shingles and their resemblance, Broder 1997, "On the resemblance and containment of documents".
    """

    def __init__(self, texts: Mapping[int, str | None]):
        self._texts = texts
        self._known: dict[int, _Read] = {}

    def first_like(self, row: int, others: Iterable[int]) -> int | None:
        """The first of some other rows of which this row is a near-duplicate; `None`: of none."""
        read = self._read(row)
        if not read.words:
            return None
        return next((other for other in others if _alike(read, self._read(other))), None)

    def _read(self, row: int) -> _Read:
        if row not in self._known:
            text = unicodedata.normalize("NFKC", (self._texts[row] or "")[:_COMPARED]).casefold()
            words = tuple(_WORD.findall(text))
            starts = range(len(words) - SHINGLE + 1)
            self._known[row] = _Read(words, frozenset(words[start : start + SHINGLE] for start in starts))
        return self._known[row]


def _alike(first: _Read, second: _Read) -> bool:
    if first.words == second.words:
        return True
    fewer, more = sorted((len(first.shingles), len(second.shingles)))
    if fewer < OVERLAP * more or not fewer:
        return False
    common = len(first.shingles & second.shingles)
    return common >= OVERLAP * (fewer + more - common)
