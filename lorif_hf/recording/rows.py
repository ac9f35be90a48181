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
from ..tasks.collation import LABELS, PaddingCollator, computable, padding_collator, with_a_token
from . import row_checks
from .code_identity import code_identity, task_code
from .fingerprint import by_value, row_bytes
from .random_state import random_state_kept
from .row_access import columns_of, read_rows, readable
from .shown_rows import ShownRows


__all__ = ["TrainingRows", "task_code", "tokens_per_example"]

_TOGETHER = 32  # rows that are read at once to be hashed, or for their lengths
_CHECKED = 32  # rows that are looked at before the pass
_DRAWS = 3  # until rows count as collated without random numbers


class TrainingRows:
    """A map-style dataset in its own order, whatever a sampler did with it.

    Args:
        dataset: a `datasets.Dataset` or anything with `len` and integer indexing.
        model (`nn.Module`): decides which columns are model inputs.
        task (`Task`): decides whether labels are needed.
        processing_class: the tokenizer, for padding and for texts.
        data_collator (`Callable`, *optional*): features to a batch; by default pads on the right.
        examples (*optional*): the same rows with what people see of them: see [`ShownRows`].
        store_text (`bool` or `int`): whole text, at most so many characters of it, or none.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: the rows have no number, there is none, or `examples` are not the same rows.
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
    ):
        self.dataset, self.count = readable(dataset)
        if self.count == 0:
            raise DatasetError("The dataset is empty: there is no row to index.")
        self.model, self.task = model, task
        self.shown = ShownRows(self.dataset, self.count, examples, processing_class, store_text)
        self._padding = padding_collator(model, processing_class, task.makes_labels)
        self.collator = data_collator or self._padding

    def batch(self, row_ids: Sequence[int]) -> dict[str, Any]:
        """The rows of these numbers, collated.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: names the row, and where it can the column, that cannot be measured.
        """
        return self._collated(read_rows(self.dataset, row_ids), row_ids)

    def check(self) -> None:
        """Look at a sample of rows, evenly spaced, as batches and as examples, without a trace on random numbers.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: as for a batch.
        """
        sample = sorted({*self.spaced(_CHECKED), self.count - 1})
        with random_state_kept(self.collator, self.dataset, self.shown.examples):
            for start in range(0, len(sample), 8):
                self.batch(sample[start : start + 8])
            for row in sample:
                self.texts(row, row + 1)
                self.example_ids(row, row + 1)

    def draws_random(self, row_ids: Sequence[int]) -> bool:
        """Whether these rows, collated again, are other tensors. The random state is kept."""
        with random_state_kept(self.collator, self.dataset):
            first = by_value(self.batch(row_ids))
            return any(by_value(self.batch(row_ids)) != first for _ in range(_DRAWS))

    def lengths(self, row_ids: Sequence[int]) -> list[int]:
        """Tokens of each row.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: they are not made of tokens.
        """
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
        count = min(count, self.count)
        return [number * self.count // count for number in range(count)]

    def _collated(self, features: list[Any], row_ids: Sequence[int]) -> dict[str, Any]:
        known = row_checks.is_known_collator(self.collator)
        if known:
            row_checks.check_features(features, row_ids, self._counted, self._filled)
            if self.task.name == "causal-lm":
                row_checks.check_token_labels(features, row_ids)
        if known and not isinstance(self.collator, PaddingCollator):
            # As the Trainer does before it collates: these collators cannot pad names and texts. Others may need them.
            kept = {*self._signature(), *LABELS}
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
                f"{columns}; the model takes {', '.join(self._signature()[:6])}, "
                "... Tokenize it first: dataset.map(lambda row: tokenizer(row['text'], truncation=True))."
            )
        if self.task.needs_labels and "labels" not in batch:
            raise DatasetError(
                f"The batches have no labels, which objective '{self.task.name}' needs; they have "
                f"{', '.join(batch)}. Add a 'labels' column, or a data_collator that makes one."
            )
        batch = {key: computable(key, v) if isinstance(v, Tensor) else v for key, v in batch.items()}
        batch = with_a_token(batch, self._padding.padding)
        row_checks.check_numbers(self.model, self.task, batch, row_ids)
        return batch

    @cached_property
    def _counted(self) -> set[str]:
        """Columns that the model takes, or that hold labels; a row without a mask may stand beside others."""
        return {*self._signature(), *LABELS} - {"attention_mask"}

    @cached_property
    def _filled(self) -> set[str]:
        """Those of them in which the first row has a value: as in all others, for known collators."""
        (first,) = read_rows(self.dataset, [0])
        row_checks.check_is_row(first, 0)
        return row_checks.filled_columns(first, self._counted)

    def _signature(self) -> list[str]:
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
        examples = self.shown.examples
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
        how = [self.count, columns_of(self.dataset), code_identity(self.collator), shown.text_columns]
        build, taken = hashlib.sha256(by_value([*how, shown.id_column, shown.store_text])), hashlib.sha256()
        known = {*self._signature(), *LABELS}
        with random_state_kept(self.dataset):
            # A transform that draws draws the same each time.
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            for start in range(0, self.count, _TOGETHER):
                for row in read_rows(self.dataset, range(start, min(start + _TOGETHER, self.count))):
                    whole, inputs = row_bytes(row, known)
                    build.update(whole)
                    taken.update(inputs)
        return build.hexdigest(), taken.hexdigest()


def tokens_per_example(batch: dict[str, Any], size: int) -> Tensor:
    """(B,) tokens of each example in a batch, padding not counted; zero where the input is not made of tokens."""
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum(dim=1).to("cpu", torch.int64)
    return torch.full((size,), ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 2 else 0)


def _is_number(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, Tensor, np.ndarray, np.generic))
