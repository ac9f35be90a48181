"""The rows of a training set: as batches for the recorder, and as examples for people."""

import hashlib
import inspect
import json
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
from ..tasks.collation import PaddingCollator, padding_collator


_LABELS = ("labels", "label", "label_ids")


class TrainingRows:
    """A map-style dataset in its own order, whatever a sampler did with it.

    Args:
        dataset: a `datasets.Dataset` or anything with `len` and integer indexing.
        model (`nn.Module`): decides which columns are model inputs.
        task (`Task`): decides whether labels are needed.
        processing_class: the tokenizer, for padding and for texts.
        data_collator (`Callable`, *optional*): features to a batch; by default pads on the right.
        examples (*optional*): the same rows with what people see of them: a column "text", else all columns that hold
            text, and a column "example_id" or "id" with their own names. By default the columns "text" and
            "example_id" or "id" of `dataset`; without a text, `input_ids` are decoded.
        store_text (`bool` or `int`): whole text, at most so many characters of it, or none.
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
        try:
            self.count = len(dataset)
        except TypeError:
            raise DatasetError(
                f"A {type(dataset).__name__} has no length, so its rows have no number. Load it as a map-style "
                "dataset (datasets.load_dataset without streaming, or Dataset.from_generator)."
            ) from None
        if self.count == 0:
            raise DatasetError("The dataset is empty: there is no row to index.")
        self.dataset, self.model, self.task = dataset, model, task
        self.examples = dataset if examples is None else examples
        if len(self.examples) != self.count:
            raise DatasetError(
                f"examples has {len(self.examples)} rows, the dataset {self.count}: they must be the same."
            )
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        columns = _columns(self.examples)
        self._id_column = next((name for name in ("example_id", "id") if name in columns), None)
        self._text_columns = ["text"] if "text" in columns else []
        if examples is not None and not self._text_columns:
            first = self.examples[0]
            self._text_columns = [c for c in columns if c != self._id_column and isinstance(first[c], str)]
        self.store_text = store_text
        self._collate = data_collator or padding_collator(model, processing_class, task.makes_labels)

    def batch(self, row_ids: Sequence[int]) -> dict[str, Any]:
        """The rows of these numbers, collated."""
        together = getattr(self.dataset, "__getitems__", None)
        return self._collated(together(list(row_ids)) if together else [self.dataset[i] for i in row_ids])

    def lengths(self, row_ids: Sequence[int]) -> list[int]:
        """Tokens of each row.

        Raises:
            [`~lorif_hf.errors.DatasetError`]: they are not made of tokens.
        """
        columns = _columns(self.dataset)
        if "input_ids" not in columns:
            raise DatasetError(
                f"max_tokens_per_batch counts the tokens in column 'input_ids'; the dataset has "
                f"{', '.join(columns) or 'no columns'}. Use batch_size."
            )
        return [len(self.dataset[i]["input_ids"]) for i in row_ids]

    def spaced(self, count: int) -> list[int]:
        """Numbers of at most `count` rows, evenly spaced over the dataset."""
        count = min(count, self.count)
        return [number * self.count // count for number in range(count)]

    def _collated(self, features: list[Any]) -> dict[str, Any]:
        if type(self._collate).__module__.startswith("transformers.") and isinstance(features[0], dict):
            # As the Trainer does before it collates: these collators cannot pad names and texts. Others may need them.
            known = {*self._signature(), *_LABELS}
            features = [{k: v for k, v in feature.items() if k in known or _is_number(v)} for feature in features]
        batch = dict(self._collate(features)) if features and features[0] else {}
        inputs = forward_inputs(self.model, batch) if self.task.needs_labels else batch
        if not inputs:
            raise DatasetError(
                f"The dataset has no column that {type(base_model(self.model)).__name__} takes. It has "
                f"{', '.join(_columns(self.dataset)) or 'none'}; the model takes {', '.join(self._signature()[:6])}, "
                "... Tokenize it first: dataset.map(lambda row: tokenizer(row['text'], truncation=True))."
            )
        if self.task.needs_labels and "labels" not in batch:
            raise DatasetError(
                f"The batches have no labels, which objective '{self.task.name}' needs; they have "
                f"{', '.join(batch)}. Add a 'labels' column, or a data_collator that makes one."
            )
        return batch

    def _signature(self) -> list[str]:
        return list(inspect.signature(base_model(self.model).forward).parameters)

    def texts(self, start: int, stop: int) -> list[str | None]:
        """What each row says: its text columns, else its decoded tokens; cut to `store_text` characters."""
        if self.store_text is False:
            return [None] * (stop - start)
        if self._text_columns:
            columns = {name: _column(self.examples, name, start, stop) for name in self._text_columns}
            texts = [_shown(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        elif self.tokenizer is not None and "input_ids" in _columns(self.dataset):
            texts = [self.tokenizer.decode(ids) for ids in _column(self.dataset, "input_ids", start, stop)]
        else:
            return [None] * (stop - start)
        return texts if self.store_text is True else [text and text[: self.store_text] for text in texts]

    def example_ids(self, start: int, stop: int) -> list[str | None]:
        """The user's own name of each row, as text."""
        if self._id_column is None:
            return [None] * (stop - start)
        return [
            None if value is None else str(value) for value in _column(self.examples, self._id_column, start, stop)
        ]

    def source(self) -> dict[str, Any]:
        """What is known of where the rows come from, and a hash of what they are to the model.

        A `datasets.Dataset` knows its name, split, licence and Hub revision. `fingerprint` is a hash over the columns
        that the model takes: the same for everybody who trains on these rows, however they are collated or shown.
        """
        rows = {"fingerprint": self._hashes[1]}
        info = getattr(self.examples, "info", None)
        if info is None:
            return rows
        source: dict[str, Any] = {
            "name": info.dataset_name,
            "config": info.config_name,
            "split": str(self.examples.split) if self.examples.split else None,
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
        how = [self.count, _columns(self.dataset), code_identity(self._collate), self._text_columns, self._id_column]
        how += [self.store_text, vars(self._collate) if isinstance(self._collate, PaddingCollator) else None]
        build, taken = hashlib.sha256(json.dumps(how, default=str).encode()), hashlib.sha256()
        known = {*self._signature(), *_LABELS}
        for i in range(self.count):
            row = _as_lists(self.dataset[i])
            build.update(_canonical(row))
            inputs = {key: row[key] for key in known & row.keys()} if isinstance(row, dict) else {}
            taken.update(_canonical(inputs or row))
        return build.hexdigest(), taken.hexdigest()


def tokens_per_example(batch: dict[str, Any], size: int) -> Tensor:
    """(B,) tokens of each example in a batch, padding not counted; zero where the input is not made of tokens."""
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum(dim=1).to("cpu", torch.int64)
    return torch.full((size,), ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 2 else 0)


def _shown(columns: dict[str, Any]) -> str | None:
    """The text of a row: that of its only column, or of each under its name."""
    if len(columns) == 1:
        (text,) = columns.values()
        return None if text is None else str(text)
    return "\n".join(f"{name}: {text}" for name, text in columns.items() if text is not None)


def _columns(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return names
    first = dataset[0]
    return list(first) if isinstance(first, dict) else []


def _column(dataset: Any, name: str, start: int, stop: int) -> Sequence[Any]:
    if isinstance(getattr(dataset, "column_names", None), list):
        return dataset[start:stop][name]
    return [dataset[i][name] for i in range(start, stop)]


def code_identity(function: Any) -> str:
    """What tells one user's function from another: its name and, where it has one, the hash of its code."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    code = getattr(getattr(kind, "__code__", None), "co_code", b"")
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(code).hexdigest()[:16]}"


def task_code(task: Task) -> str:
    """What tells a task's losses from other ones of the same name."""
    return code_identity(getattr(task, "__wrapped__", task.losses))


def _is_number(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, Tensor, np.ndarray))


def _canonical(row: Any) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode()


def _as_lists(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _as_lists(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) for item in value]
    return value
