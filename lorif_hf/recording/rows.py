"""The rows of a training set: as batches for the recorder, and as examples for people."""

import hashlib
import inspect
import random
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DatasetError
from ..layers.modules import base_model
from ..tasks.base import Task, forward_inputs
from ..tasks.collation import LABELS, PaddingCollator, computable, joined, padding_collator, with_a_token
from ..tasks.input_limits import InputLimits
from ..tasks.segments import SEGMENTS, without_segments
from . import row_checks
from .code_identity import code_identity, task_code
from .document_search import Packing, document_collator, find_documents
from .documents import DocumentRows, Documents, flattened
from .drawn_rows import drawn_once, draws_random
from .fingerprint import by_value, row_bytes
from .random_state import random_state_kept
from .row_access import columns_of, read_rows, readable
from .shown_rows import ShownRows
from .streamed_rows import RECENT, StreamedRows
from .token_counts import tokens_per_example


__all__ = ["TrainingRows", "task_code", "tokens_per_example"]

_CHUNK = 1024  # rows that are read at once to look at their columns
_TOGETHER = 32  # rows that are read at once to be hashed, or for their lengths
_CHECKED = 32  # rows that are looked at before the pass
_DRAWS = 3  # rows, each twice, until rows count as read and collated without random numbers


class TrainingRows:
    """A map-style dataset in its own order, whatever a sampler did with it.

    Where the dataset's rows hold several documents each (packing), the documents are the rows here. Where reading or
    collating a row draws random numbers (masks, crops), they are drawn once for each row, from a seed and its number,
    whenever it is asked for and in whatever batch.

    Args:
        dataset: a `datasets.Dataset` or anything with `len` and integer indexing; of a stream, its
            [`~lorif_hf.recording.streamed_rows.StreamedRows`].
        model (`nn.Module`): decides which columns are model inputs.
        task (`Task`): decides whether labels are needed.
        processing_class: the tokenizer, for padding and for texts.
        data_collator (`Callable`, *optional*): features to a batch; by default pads on the right.
        examples (*optional*): the same rows with what people see of them: see [`ShownRows`].
        store_text (`bool` or `int`): whole text, at most so many characters of it, or none.
        packing (`Packing`, *optional*): how the Trainer packed the rows, where it says that it did.

    Attributes:
        count (`int`): N.
        documents (`Documents` or `None`): where the rows are in those of the dataset; `None`: they are these.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: the rows have no number, there is none, they are packed and nothing tells
            their documents apart, or `examples` are not the same rows.
    """

    def __init__(
        self,
        dataset: Any,
        model: nn.Module,
        task: Task,
        processing_class: Any = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        examples: Any = None,
        store_text: bool | int = True,
        packing: Packing | None = None,
    ):
        self.dataset, self._held = readable(dataset)  # rows of the dataset itself
        if self._held == 0:
            raise DatasetError("The dataset is empty: there is no row to index.")
        self.model, self.task = model, task
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        with random_state_kept(data_collator, self.dataset):
            self.documents = self._find_documents(data_collator, tokenizer, packing)
        self._padding = padding_collator(model, processing_class, task.makes_labels)
        self.collator = data_collator or self._padding
        self.count, shown = self._held, self.dataset
        if self.documents is not None:
            self.count, shown = len(self.documents), DocumentRows(self.dataset, self.documents)
            if data_collator is None:
                self.collator = document_collator(self.dataset, tokenizer) or self._padding
            examples = self._of_documents(examples)
        # Rows that can be read in any order before the pass, and how many can be in it.
        self.reach, self.window = self.count, None
        if isinstance(self.dataset, StreamedRows):
            reach, self.window = self.dataset.reach, RECENT
            self.reach = reach if self.documents is None else int(np.searchsorted(self.documents.source_rows, reach))
        self.shown = ShownRows(shown, self.count, examples, processing_class, store_text, task.decoded)

    def _find_documents(self, collate: Any, tokenizer: Any, packing: Packing | None) -> Documents | None:
        """The documents of packed rows. Of a stream, the first rows tell whether they are packed; of one of which
        nobody knows where it ends yet, the index is planned for these alone."""
        if isinstance(self.dataset, StreamedRows):
            reach = self.dataset.reach
            documents = find_documents(self.dataset, reach, collate, tokenizer, packing)
            if documents is None or self.dataset.at_most:
                self._held = self._held if documents is None else reach
                return documents
        return find_documents(self.dataset, self._held, collate, tokenizer, packing)

    def _of_documents(self, examples: Any) -> Any:
        """What was given for people to read, if it is given of each document; what a packed row says is none's."""
        given = 0 if examples is None else readable(examples, "examples")[1]
        trial = isinstance(self.dataset, StreamedRows) and self.dataset.at_most
        if examples is None or trial or (given == self._held and given != self.count):
            return None
        if given == self.count:
            return examples
        raise DatasetError(
            f"examples has {given} rows, and the {self._held} packed rows of the dataset hold {self.count} documents: "
            "they must be the documents, in the order in which they were packed. Or leave examples out: then the "
            "tokens of each document are decoded."
        )

    def batch(self, row_ids: Sequence[int]) -> dict[str, Any]:
        """The rows of these numbers, collated; where they share sequences, with [`Segments`] that say how.

        Documents come in the packed rows that hold them, in which the others' labels are -100.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: names the row, and where it can the column, that cannot be measured.
        """
        documents = self.documents
        if documents is None:
            features, batch = self._read(row_ids)
            segments = flattened(features, batch)
            return batch if segments is None else {**batch, SEGMENTS: segments}
        sources = list(documents.by_source(row_ids))
        features, batch = self._read(sources)
        segments = documents.segments(row_ids, features, batch)
        return {**batch, "labels": segments.masked(batch["labels"]), SEGMENTS: segments}

    def _read(self, held: Sequence[int]) -> tuple[list[Any], dict[str, Any]]:
        """Rows of the dataset, as they are and collated."""
        if not self.draws_random:
            return self._collated_together(held)
        parts = drawn_once(lambda row: self._collated_together([row]), held, self.collator, self.dataset)
        batch = joined([batch for _, batch in parts], self._padding.padding)
        return [feature for features, _ in parts for feature in features], batch

    def _collated_together(self, held: Sequence[int]) -> tuple[list[Any], dict[str, Any]]:
        features = read_rows(self.dataset, held)
        return features, self._collated(features, held)

    def single(self, row: int) -> dict[str, Any]:
        """A row as a batch of its own: all that has a gradient in it is that row's."""
        return without_segments(self.batch([row]))

    def check(self, alone: bool = False) -> None:
        """Look at a sample of rows, evenly spaced, as batches and as examples, and at all for what the task cannot do
        without; no trace is left on random numbers.

        Args:
            alone (`bool`, *optional*, defaults to `False`): whether rows go one at a time.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: as for a batch.
        """
        self._check_sides()
        sample = sorted({*self.within_reach(_CHECKED), self.reach - 1})
        with random_state_kept(self.collator, self.dataset, self.shown.examples):
            together = 1 if alone else 8
            for start in range(0, len(sample), together):
                self.batch(sample[start : start + together])
            for row in sample:
                self.texts(row, row + 1)
                self.example_ids(row, row + 1)

    @cached_property
    def draws_random(self) -> bool:
        """Whether rows, read and collated again, are other tensors. The random state is kept."""
        rows = _spaced(_DRAWS, self.dataset.reach if isinstance(self.dataset, StreamedRows) else self._held)
        return draws_random(lambda row: self._collated_together([row]), rows, self.collator, self.dataset)

    def _check_sides(self) -> None:
        """Every row holds both answers of a preference, and whatever else the task names."""
        for start in range(0, self.reach if self.task.sides else 0, _CHUNK):
            rows = range(start, min(start + _CHUNK, self.reach))
            row_checks.check_sides(read_rows(self.dataset, rows), rows, self.task.sides)

    def lengths(self, row_ids: Sequence[int]) -> list[int]:
        """Tokens of each row.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: they are not made of tokens.
        """
        if self.documents is not None:
            return self.documents.lengths[list(row_ids)].tolist()
        return self.held_lengths(row_ids)

    def held_lengths(self, row_ids: Sequence[int]) -> list[int]:
        """Tokens of rows of the dataset, packed or not."""
        columns = columns_of(self.dataset)
        if "input_ids" not in columns:
            raise DatasetError(
                f"max_tokens_per_batch counts the tokens in column 'input_ids'; the dataset has "
                f"{', '.join(columns) or 'no columns'}. Use batch_size."
            )
        lengths = []
        for start in range(0, len(row_ids), _TOGETHER):
            part = row_ids[start : start + _TOGETHER]
            features = read_rows(self.dataset, part)
            row_checks.check_features(features, part, {"input_ids"}, {"input_ids"})
            lengths += [len(feature["input_ids"]) for feature in features]
        return lengths

    def spaced(self, count: int) -> list[int]:
        """Numbers of at most `count` rows, evenly spaced over the dataset."""
        return _spaced(count, self.count)

    def within_reach(self, count: int) -> list[int]:
        """The same over the rows that can be looked at before the pass: of a stream, the first ones."""
        return _spaced(count, self.reach)

    def settle(self) -> None:
        """Read all rows once. Of a stream that may have ended earlier than was thought, this shows how many there
        are.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: `examples` are fewer.
        """
        _ = self._hashes
        self.count = self._held = self.dataset.settle()
        self.shown.check_count(self.count)

    def sample(self, count: int) -> list[int]:
        """Numbers of about `count` rows, evenly spaced, of which a pass takes no longer than of any other so many."""
        return self.spaced(count) if self.documents is None else self.documents.sample(count)

    def num_tokens(self, row_ids: Sequence[int], batch: dict[str, Any]) -> Tensor:
        """int64 (n,) tokens of each row in a batch of these. A row may be several sequences, each with its own."""
        if self.documents is not None:
            return torch.tensor(self.lengths(row_ids))
        return tokens_per_example(batch, len(row_ids), self.task)

    def _collated(self, features: list[Any], row_ids: Sequence[int]) -> dict[str, Any]:
        row_checks.check_sides(features, row_ids, self.task.sides)
        known = row_checks.is_known_collator(self.collator)
        if known:
            row_checks.check_features(features, row_ids, self._counted, self._filled)
            if self.task.labels_each_token:
                row_checks.check_token_labels(features, row_ids)
        if known and not isinstance(self.collator, PaddingCollator):
            # As the Trainer does before it collates: these collators cannot pad names and texts. Others may need them.
            kept = {*self.signature(), *LABELS}
            features = [{k: v for k, v in feature.items() if k in kept or _is_number(v)} for feature in features]
        empty = known and not any(features)
        batch = {} if empty else row_checks.collated(self.collator, features, row_ids)
        if isinstance(self.collator, PaddingCollator):
            row_checks.check_kept(features, row_ids, self._filled, batch)
        inputs = forward_inputs(self.model, batch) if self.task.needs_labels else batch
        if not inputs:
            columns = ", ".join(columns_of(self.dataset)) or "none"
            raise DatasetError(
                f"The dataset has no column that {type(base_model(self.model)).__name__} takes. It has "
                f"{columns}; the model takes {', '.join(self.signature()[:6])}, "
                "... Tokenize it first: dataset.map(lambda row: tokenizer(row['text'], truncation=True))."
            )
        row_checks.check_labelled(self.task, batch)
        batch = {key: computable(key, v) if isinstance(v, Tensor) else v for key, v in batch.items()}
        batch = with_a_token(batch, self._padding.padding)
        row_checks.check_numbers(self.model, self.task, batch, row_ids)
        row_checks.check_lengths(self._limits, batch, row_ids)
        return batch

    @cached_property
    def _limits(self) -> InputLimits:
        return InputLimits(self.model)

    @cached_property
    def _counted(self) -> set[str]:
        """Columns that the model takes, or that hold labels; a row without a mask may stand beside others."""
        return {*self.signature(), *LABELS} - {"attention_mask"}

    @cached_property
    def _filled(self) -> set[str]:
        """Those of them in which the first row has a value: as in all others, for known collators."""
        (first,) = read_rows(self.dataset, [0])
        row_checks.check_is_row(first, 0)
        return row_checks.filled_columns(first, self._counted)

    def signature(self) -> list[str]:
        """What the model's forward pass takes."""
        return list(inspect.signature(base_model(self.model).forward).parameters)

    def texts(self, start: int, stop: int) -> list[str | None]:
        """What each row says; see [`ShownRows`]."""
        return self.shown.texts(start, stop)

    def example_ids(self, start: int, stop: int) -> list[str | None]:
        """The user's own name of each row, as text."""
        return self.shown.example_ids(start, stop)

    def source(self) -> dict[str, Any]:
        """What is known of where the rows come from, and a hash of what they are to the model.

        A `datasets.Dataset` knows its name, split, licence and Hub revision. `fingerprint` is a hash over the columns
        that the model takes: the same for everybody who trains on these rows, however they are collated or shown.
        """
        rows = {"fingerprint": self._hashes[1]}
        examples = self.dataset if isinstance(self.shown.examples, DocumentRows) else self.shown.examples
        info = getattr(examples, "info", None)
        if info is None:
            return rows
        source: dict[str, Any] = {
            "name": info.dataset_name,
            "config": info.config_name,
            "split": str(examples.split) if examples.split else None,
            "license": info.license or None,
        }
        for url in info.download_checksums or {}:
            repo = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)@([\w.-]+)/.*", url)
            if repo:
                source["name"], source["revision"] = repo[1], repo[2]
        return {key: value for key, value in source.items() if value} | rows

    def fingerprint(self) -> str:
        """Hash over every row, the way rows become batches and what is shown of them."""
        return self._hashes[0]

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        """The fingerprint of a build, and that of the rows as the model takes them, in one pass."""
        shown = self.shown
        packed = [] if self.documents is None else [self.documents.digest()]
        how = [*packed, columns_of(self.dataset), code_identity(self.collator), shown.text_columns]
        build, taken = hashlib.sha256(by_value([*how, shown.id_column, shown.store_text])), hashlib.sha256()
        taken.update("".join(packed).encode())
        known = {*self.signature(), *LABELS}
        with random_state_kept(self.dataset):
            # A transform that draws draws the same each time.
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            start, count = 0, self._held
            while start < count:
                stop = min(start + _TOGETHER, count)
                if isinstance(self.dataset, StreamedRows):
                    count = self.dataset.reads_to(start, stop)
                for row in read_rows(self.dataset, range(start, min(stop, count))):
                    whole, inputs = row_bytes(row, known)
                    build.update(whole)
                    taken.update(inputs)
                start = stop
        build.update(by_value(count))
        return build.hexdigest(), taken.hexdigest()


def _spaced(count: int, among: int) -> list[int]:
    count = min(count, among)
    return [number * among // count for number in range(count)]


def _is_number(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, Tensor, np.ndarray, np.generic))
