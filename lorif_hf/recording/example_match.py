"""Whether the examples that people see are the rows that the model takes, in the same order.

A mismatch is refused on evidence alone: a row whose content stands in another example and not in its own.
"""

import functools
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import DatasetError
from .row_access import columns_of, read_rows, without_media


_SAMPLE = 200  # rows that are compared
_WIDER = 2000  # rows among which those are sought, where most of them are equal
_SEARCHED = 30_000  # examples among which the content of a row is sought that its own does not have
_RUN, _RUNS = 12, 8  # letters of a run by which content is sought, and how many runs of a row
_GRAM = 5  # letters
_ROW_LETTERS, _EXAMPLE_LETTERS = 1000, 4000  # of a row, of an example, that are compared
_KEYED = 0.9  # share of different values from which on a column tells rows apart
_SAME, _OTHER = (
    0.7,
    0.5,
)  # share of common content of one row; what its own example has at most, of that, where refused
_NEEDED = 2  # rows found elsewhere, until it is no accident

_SCALARS = (str, int, float, bytes)

_Grams = frozenset[str]
_Reader = Callable[[Any], str]


class _Mismatch(NamedTuple):
    row: int
    says: Any
    example_says: Any
    found_at: int | None


def check_examples(dataset: Any, examples: Any, count: int, tokenizer: Any = None) -> None:
    """Compare a sample of rows with their examples.

    By a column of both that tells rows apart, such as an id or a text; else by what the rows say: by their texts and
    tokens of the same name, and by decoding `input_ids`. Case, accents, spaces, truncation, and what stands around a
    text may differ. Where nothing can be told, nothing is said.

    Args:
        dataset, examples: map-style datasets of the same length.
        count (`int`): that length.
        tokenizer (*optional*): decodes `input_ids`.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: names the first row of the sample that is another one.
    """
    dataset, examples = without_media(dataset), without_media(examples)
    sample = _spaced(count, _SAMPLE)
    rows, shown = read_rows(dataset, sample), read_rows(examples, sample, "examples")
    if not all(isinstance(row, Mapping) for row in [*rows, *shown]):
        return
    shared = [name for name in columns_of(dataset) if name in set(columns_of(examples))]
    disputed = None
    for name in shared:
        pairs = [(row.get(name), other.get(name)) for row, other in zip(rows, shown, strict=True)]
        if not _tells_apart(pairs):
            continue
        different = [place for place, (value, other) in enumerate(pairs) if value != other]
        if not different:
            return
        mismatch = _keyed_elsewhere(name, pairs, different, sample, examples, count)
        if disputed is None and (mismatch.found_at is not None or not isinstance(mismatch.says, str)):
            disputed = mismatch
    agreed = False
    for reader, example_reader in _views(rows[0], shown[0], shared, tokenizer):
        own, refuted = _compared(dataset, examples, count, reader, example_reader)
        if refuted is not None:
            raise _refusal(disputed or refuted)
        agreed = agreed or own
    if disputed is not None and not agreed:  # else the rows were given other ids
        raise _refusal(disputed)


def _tells_apart(pairs: list[tuple[Any, Any]]) -> bool:
    """Whether a column's values are plain, of one type on both sides, and hardly any twice."""
    values, others = zip(*pairs, strict=True)
    plain = all(isinstance(value, _SCALARS) and type(value) is type(values[0]) for value in (*values, *others))
    return plain and min(len(set(values)), len(set(others))) >= _KEYED * len(pairs) and len(pairs) > 1


def _keyed_elsewhere(
    name: str, pairs: list[tuple[Any, Any]], different: list[int], sample: list[int], examples: Any, count: int
) -> _Mismatch:
    """The first row with another value than its example, and where that value stands, if it is not there by chance."""
    first = different[0]
    wanted = {pairs[place][0]: place for place in different}
    places: dict[int, int] = {}
    for row, example in _candidates(examples, [name], [sample[place] for place in different], count):
        value = _value(example, name)
        place = wanted.get(value) if isinstance(value, _SCALARS) else None
        if place is not None and row != sample[place]:
            places.setdefault(place, row)
        if len(places) >= min(_NEEDED, len(different)) and first in places:
            break
    by_chance = len(places) < min(_NEEDED, len(different))
    found_at = None if by_chance else places.get(first, next(iter(places.values())))
    if not by_chance and first not in places:
        first = next(iter(places))
    return _Mismatch(sample[first], *pairs[first], found_at)


def _views(
    row: Mapping[str, Any], example: Mapping[str, Any], shared: list[str], tokenizer: Any
) -> Iterator[tuple[_Reader, _Reader]]:
    """Pairs of readers: what a row says, and what an example says of the same."""
    for name in shared:
        if isinstance(row.get(name), str) and isinstance(example.get(name), str):
            text = functools.partial(_text_in, name)
            yield text, text
    if "input_ids" not in row:
        return
    if "input_ids" in example:
        yield _tokens, _tokens
    if tokenizer is not None and any(_strings(example)):
        yield functools.partial(_decoded, tokenizer), lambda item: "\n".join(_strings(item))


def _compared(
    dataset: Any, examples: Any, count: int, reader: _Reader, example_reader: _Reader
) -> tuple[bool, _Mismatch | None]:
    """Whether the rows say what their examples say, and a row whose content stands in another example, not its own."""
    sample, says = _different_rows(dataset, count, reader)
    shown = [_letters(example_reader(item))[:_EXAMPLE_LETTERS] for item in read_rows(examples, sample, "examples")]
    grams = [_grams(text) for text in says]
    frequency = Counter(itertools.chain.from_iterable(grams))
    weights = {gram: math.log((len(sample) + 1) / rows) for gram, rows in frequency.items()}
    unseen = math.log(len(sample) + 1)
    own = [_common(row, _grams(example), weights, unseen) for row, example in zip(grams, shown, strict=True)]
    doubtful = [place for place, share in enumerate(own) if says[place] and share < _SAME]
    agreed = len(doubtful) < (1 - _SAME) * len(sample) and len(set(says)) > len(says) / 2
    hits: dict[int, int] = {}
    for place, row, there in _alike(says, doubtful, sample, examples, example_reader, count):
        share = _common(grams[place], there, weights, unseen)
        if place in hits or share < _SAME or own[place] > _OTHER * share:
            continue
        (home,) = read_rows(dataset, [row])
        if _common(_grams(_letters(reader(home))[:_ROW_LETTERS]), there, weights, unseen) >= _SAME:
            continue  # it is where it belongs, and says something that two rows say
        hits[place] = row
        if len(hits) == _NEEDED:
            place = min(hits)
            (item,) = read_rows(dataset, [sample[place]])
            (example,) = read_rows(examples, [sample[place]], "examples")
            return agreed, _Mismatch(sample[place], reader(item), example_reader(example), hits[place])
    return agreed, None


def _alike(
    says: list[str], doubtful: list[int], sample: list[int], examples: Any, example_reader: _Reader, count: int
) -> Iterator[tuple[int, int, _Grams]]:
    """Examples that may say what a doubtful row says: the row's place in the sample, the example, what it says.

    They have several runs of letters in common, of those that no other row of the sample has.
    """
    width = _RUN if sum(map(len, says)) >= 2 * _RUN * len(says) else _GRAM
    runs = [np.unique(_runs(text, width)) for text in says]
    rows_with = Counter(itertools.chain.from_iterable(of_text.tolist() for of_text in runs))
    own = {place: [run for run in runs[place].tolist() if rows_with[run] == 1] for place in doubtful}
    own = {place: rare[:: max(1, len(rare) // _RUNS)] for place, rare in own.items()}
    place_of = {run: place for place, rare in own.items() for run in rare}
    if not place_of:
        return
    keys = np.array(sorted(place_of), dtype=np.uint64)
    for row, item in _candidates(examples, None, [sample[place] for place in own], count):
        letters = _letters(example_reader(item))[:_EXAMPLE_LETTERS]
        there = _runs(letters, width)
        common = set(there[keys[np.searchsorted(keys, there) % len(keys)] == there].tolist())
        for place, shared in Counter(place_of[run] for run in common).items():
            if row != sample[place] and shared >= min(_NEEDED, len(own[place])):
                yield place, row, _grams(letters)


def _runs(letters: str, width: int) -> np.ndarray:
    """A hash of each run of so many letters; of a shorter text, of the whole."""
    codes = np.frombuffer(letters.ljust(width, "\0").encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    hashes = np.zeros(len(codes) - width + 1, np.uint64)
    for start in range(width):
        hashes = hashes * np.uint64(1_000_003) + codes[start : start + len(hashes)]
    return hashes


def _different_rows(dataset: Any, count: int, reader: _Reader) -> tuple[list[int], list[str]]:
    """Rows of a sample and their letters; where most are equal, those that differ are sought among more rows."""
    sample = _spaced(count, _SAMPLE)
    says = [_letters(reader(row))[:_ROW_LETTERS] for row in read_rows(dataset, sample)]
    if len(set(says)) > len(says) / 2 or count <= len(sample):
        return sample, says
    known: dict[str, int] = {}
    for row in _spaced(count, _WIDER):
        (item,) = read_rows(dataset, [row])
        known.setdefault(_letters(reader(item))[:_ROW_LETTERS], row)
    kept = sorted((row, text) for text, row in known.items())[:_SAMPLE]
    return [row for row, _ in kept], [text for _, text in kept]


def _candidates(examples: Any, columns: list[str] | None, near: list[int], count: int) -> Iterator[tuple[int, Any]]:
    """Examples in which the content of rows is sought: beside them, half the dataset away, then all over it."""
    if columns is not None and hasattr(examples, "select_columns"):
        examples = examples.select_columns(columns)
    steps = [1, -1, 2, -2, count // 2, -(count // 2)]
    order = dict.fromkeys([(row + step) % count for row in near for step in steps] + _spaced(count, _SEARCHED))
    row_ids = list(order)
    for start in range(0, len(row_ids), 32):
        part = row_ids[start : start + 32]
        yield from zip(part, read_rows(examples, part, "examples"), strict=True)


def _common(row: _Grams, example: _Grams, weights: Mapping[str, float], unseen: float) -> float:
    """The share of a row's content that an example has, or of an example's that the row has, whichever is more.

    What most rows have, as a template, weighs little; what no row has weighs `unseen`.
    """
    if not row or not example:
        return float(row == example)
    common = sum(weights.get(gram, unseen) for gram in row & example)
    whole = sum(weights.get(gram, unseen) for gram in row)
    other = common + sum(weights.get(gram, unseen) for gram in example - row)
    short = len(example) < 4 * _GRAM  # stands in many rows by accident
    return max(common / whole, 0.0 if short else common / other)


def _grams(letters: str) -> _Grams:
    return frozenset(letters[place : place + _GRAM] for place in range(max(1, len(letters) - _GRAM + 1)) if letters)


def _letters(text: str) -> str:
    """Letters and digits of a text, without case, accents and spaces."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKD", text[: 2 * _EXAMPLE_LETTERS]).casefold())


def _text_in(name: str, item: Any) -> str:
    value = _value(item, name)
    return value if isinstance(value, str) else ""


def _tokens(item: Any) -> str:
    """Tokens as letters: one a token."""
    ids = _value(item, "input_ids")
    ids = [] if ids is None else ids.tolist() if hasattr(ids, "tolist") else ids
    if any(isinstance(part, (list, tuple)) for part in ids):  # the choices of a row
        ids = [token for part in ids for token in part]
    ids = ids[:_EXAMPLE_LETTERS]
    return "".join(chr(0x4E00 + int(token) % 20_000) for token in ids if token >= 0)


def _decoded(tokenizer: Any, item: Any) -> str:
    try:
        ids = [int(token) for token in item["input_ids"] if token >= 0]
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text
    except Exception:  # ids of another kind: then nothing can be told
        return ""


def _value(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else None


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, (list, tuple)) and not (value and isinstance(value[0], (int, float))):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _spaced(count: int, most: int) -> list[int]:
    """At most `most` row numbers, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({number * (count - 1) // (most - 1) for number in range(most)})


def _refusal(mismatch: _Mismatch) -> DatasetError:
    row, says, example_says, found_at = mismatch
    elsewhere = "" if found_at is None else f", while row {found_at} of examples does"
    return DatasetError(
        f"examples are not the rows of the dataset: row {row} of the dataset says {_short(says)}, row {row} of "
        f"examples says {_short(example_says)}{elsewhere}. Rows were shuffled (shuffle_dataset=True of SFTConfig), "
        "dropped (by a filter, or as too long) or packed in between. Pass the rows as they were trained, in their "
        "order, or leave examples out."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
