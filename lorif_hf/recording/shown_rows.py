"""What people see of the rows of a training set: their texts and their own names."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DatasetError
from .example_match import check_examples
from .row_access import as_written, column, columns_of, read_rows, readable
from .streamed_rows import StreamedRows


logger = logging.getLogger(__name__)


class ShownRows:
    """The rows of a dataset, or what the user gives in their place, as examples for people.

    Args:
        dataset: the rows that the model takes.
        count (`int`): how many there are.
        examples (*optional*): the same rows with what people see of them: a column "text", else all columns that hold
            text, and a column "example_id" or "id" with their own names. By default the columns "text" and
            "example_id" or "id" of `dataset`; without a text, tokens are decoded.
        processing_class: the tokenizer, or what holds it, for rows without a text.
        store_text (`bool` or `int`): whole text, at most so many characters of it, or none.
        tokens (`Sequence[str]`, *optional*): columns of tokens that say what a row is, in the order of reading.

    Attributes:
        given (`bool`): whether `examples` was given.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: `examples` are not the same rows.
    """

    def __init__(
        self,
        dataset: Any,
        count: int,
        examples: Any,
        processing_class: Any,
        store_text: bool | int,
        tokens: Sequence[str] = ("input_ids",),
    ):
        self.dataset, self.store_text, self.given = dataset, store_text, examples is not None
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.examples, self._given = (dataset, count) if examples is None else readable(examples, "examples")
        self.check_count(count)
        self.examples = as_written(self.examples)
        columns = columns_of(self.examples)
        self.id_column = next((name for name in ("example_id", "id") if name in columns), None)
        self.text_columns = ["text"] if "text" in columns else []
        if examples is not None and not self.text_columns:
            (first,) = read_rows(self.examples, [0], "examples")
            self.text_columns = [c for c in columns if c != self.id_column and isinstance(first.get(c), str)]
        if examples is not None and examples is not dataset:
            reach = dataset.reach if isinstance(dataset, StreamedRows) else count
            check_examples(dataset, self.examples, min(reach, self._given), self.tokenizer)
        present = columns_of(dataset) if self.tokenizer is not None and not self.text_columns else []
        self.token_columns = [name for name in tokens if name in present]
        self._undecoded = False

    def check_count(self, count: int) -> None:
        """See that there are as many examples as rows. A stream may be the beginning of them, and one that may end
        earlier than was thought may be as long as they are.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: there are more or fewer.
        """
        most = least = count
        if isinstance(self.dataset, StreamedRows):
            most, least = self._given, self.dataset.reach if self.dataset.at_most else count
        if not least <= self._given <= most:
            raise DatasetError(f"examples has {self._given} rows, the dataset {count}: they must be the same.")

    def texts(self, start: int, stop: int) -> list[str | None]:
        """What each row says: its text columns, else its decoded tokens; cut to `store_text` characters."""
        if self.store_text is False:
            return [None] * (stop - start)
        if self.text_columns:
            columns = {name: column(self.examples, name, start, stop) for name in self.text_columns}
            texts = [_shown(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        elif self.token_columns:
            parts = [column(self.dataset, name, start, stop) for name in self.token_columns]
            texts = [self._read(tokens, row) for row, tokens in enumerate(zip(*parts, strict=True), start)]
        else:
            return [None] * (stop - start)
        return texts if self.store_text is True else [text and text[: self.store_text] for text in texts]

    def example_ids(self, start: int, stop: int) -> list[str | None]:
        """The user's own name of each row, as text."""
        if self.id_column is None:
            return [None] * (stop - start)
        names = column(self.examples, self.id_column, start, stop)
        return [None if name is None else _writable(str(name)) for name in names]

    def _read(self, tokens: Sequence[Any], row: int) -> str | None:
        """What columns of tokens say, each under its name where there are several."""
        texts = [None if ids is None else self._decoded(ids, row) for ids in tokens]
        names = [name.removesuffix("_ids") for name in self.token_columns]
        return _shown(dict(zip(names, texts, strict=True)))

    def _decoded(self, ids: Any, row: int) -> str | None:
        """A row's tokens as text. A row that cannot be read by people can be measured all the same."""
        try:
            return _writable(self.tokenizer.decode([int(token) for token in ids if token >= 0]))
        except Exception as error:
            if not self._undecoded:
                logger.warning("Row %d cannot be decoded (%s: %s); it has no text.", row, type(error).__name__, error)
                self._undecoded = True
            return None


def _shown(columns: Mapping[str, Any]) -> str | None:
    """The text of a row: that of its only column, or of each under its name."""
    if len(columns) == 1:
        (text,) = columns.values()
        return None if text is None else _writable(str(text))
    return _writable("\n".join(f"{name}: {text}" for name, text in columns.items() if text is not None))


def _writable(text: str) -> str:
    """A text that UTF-8 can hold: halves of surrogate pairs, as cut JSON has them, are written as their number."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
