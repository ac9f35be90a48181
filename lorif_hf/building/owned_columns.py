"""The owner's own columns of a dataset, kept with the examples: a label, a source, whatever is a plain value."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..recording.row_access import column, columns_of, read_rows
from ..recording.rows import TrainingRows
from ..storage.example_columns import LONGEST_NAME, MOST_OWNED, RESERVED, is_owned_name


logger = logging.getLogger(__name__)

LONGEST_VALUE = 256
"""Characters of a text in a column of the owner's: the row's own text is in the column "text"."""

_LOOKED_AT = 16  # rows by which it is told what a column holds, where the dataset does not tell
_LABELS = ("label", "labels")  # kept, although models take them: a group to look at
_ROW_OF_MODEL = ("input_ids", "attention_mask", "token_type_ids")


class OwnedColumns:
    """What is kept of the columns that a person gave, beside a row's name and text: texts, numbers and truth values.

    Those are the columns of `examples`, where it was given, else those of the dataset that the model does not take
    (and a label, which it may). Longer texts are cut. With `store_text=False` no text is kept of the dataset, nor a
    column of `examples` that is the row's text.

    Args:
        rows (`TrainingRows`): the training set.

    Attributes:
        kinds (`dict[str, str]`): by column, what it holds: one of
            [`~lorif_hf.storage.example_columns.KINDS`].
    """

    def __init__(self, rows: TrainingRows):
        shown = rows.shown
        self.examples = shown.examples
        self._longest = LONGEST_VALUE
        if not isinstance(shown.store_text, bool):
            self._longest = min(LONGEST_VALUE, shown.store_text)
        self._names: dict[str, Sequence[str]] = {}  # of classes, by column
        self._told = False
        hidden = set(shown.text_columns) if shown.store_text is False else set()
        taken = {shown.id_column, *_ROW_OF_MODEL, *rows.signature()} - set(_LABELS)
        kinds = {}
        for name, kind in self._kinds():
            texts = kind == "string" and shown.store_text is False and not shown.given
            if name in taken or name in hidden or texts or name.startswith("__"):
                continue
            if is_owned_name(name):
                kinds[name] = kind
            elif name not in ("text", "example_id"):
                why = (
                    "means something else there" if name in RESERVED else f"is no name of 1 to {LONGEST_NAME} letters"
                )
                logger.warning("The column %r is not kept in the index: it %s. Rename it.", name[:LONGEST_NAME], why)
        if len(kinds) > MOST_OWNED:
            logger.warning("Of %d columns the first %d are kept in the index.", len(kinds), MOST_OWNED)
        self.kinds = dict(list(kinds.items())[:MOST_OWNED])

    def values(self, start: int, stop: int) -> dict[str, list[Any]]:
        """The values of rows `start` to `stop`, by column; `None` where there is none that the column can hold."""
        return {
            name: [self._value(name, kind, value) for value in column(self.examples, name, start, stop)]
            for name, kind in self.kinds.items()
        }

    def _kinds(self) -> Iterator[tuple[str, str]]:
        """The columns that hold plain values, and which."""
        features = getattr(self.examples, "features", None)
        if isinstance(features, Mapping):
            present = set(columns_of(self.examples))
            for name, feature in features.items():
                names = getattr(feature, "names", None)
                kind = "string" if names else _kind_of_dtype(str(getattr(feature, "dtype", "")))
                if name in present and kind is not None and type(feature).__name__ in ("Value", "ClassLabel"):
                    if names:
                        self._names[name] = names
                    yield name, kind
            return
        first = read_rows(self.examples, range(min(_LOOKED_AT, len(self.examples))), "examples")
        if not all(isinstance(row, Mapping) for row in first):
            return
        for name in dict.fromkeys(str(name) for row in first for name in row):
            held = {_kind_of(value) for row in first if (value := _plain(row.get(name))) is not None}
            if held == {"int64", "float64"}:
                held = {"float64"}
            if len(held) == 1 and None not in held:
                yield name, str(held.pop())

    def _value(self, name: str, kind: str, value: Any) -> Any:
        value = _plain(value)
        if value is None:
            return None
        names = self._names.get(name)
        if names is not None and isinstance(value, int):
            return names[value][: self._longest] if 0 <= value < len(names) else None
        if kind == "string":
            return str(value)[: self._longest].encode("utf-8", "backslashreplace").decode()
        fits = _kind_of(value) == kind or (kind == "float64" and isinstance(value, int))
        if fits and kind == "bool":
            return bool(value)
        if fits and kind == "int64" and -(2**63) <= value < 2**63:
            return int(value)
        if fits and kind == "float64" and math.isfinite(value):
            return float(value)
        if not self._told and not (isinstance(value, float) and not math.isfinite(value)):
            logger.warning("Column %r holds %.80r among values of type %s: it is left out.", name, value, kind)
            self._told = True
        return None


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _kind_of(value: Any) -> str | None:
    if isinstance(value, bool):
        return "bool"
    kinds = {str: "string", int: "int64", float: "float64"}
    return next((kind for type_, kind in kinds.items() if isinstance(value, type_)), None)


def _kind_of_dtype(dtype: str) -> str | None:
    if dtype in ("string", "large_string", "bool"):
        return dtype.removeprefix("large_")
    whole, real = dtype.startswith(("int", "uint")), dtype.startswith("float")
    return "int64" if whole else "float64" if real else None
