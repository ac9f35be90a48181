"""Which entries of a dict a model takes, and whether they are one row's or a batch's."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from ..errors import QueryError
from ..layers.modules import base_model
from .base import Feature, Task
from .collation import LABELS
from .custom import Custom
from .own_loss import RowLoss
from .query_values import shown


# Axes of one row's inputs, as transformers' preprocessors make them.
_AXES = {
    "input_ids": 1,
    "decoder_input_ids": 1,
    "inputs_embeds": 2,
    "pixel_values": 3,
    "input_features": 2,
    "input_values": 1,
}
# And where the same name holds something else: clips of frames, spectrograms.
_OTHER_AXES = {
    "audio-spectrogram-transformer": {"input_values": 2},
    "videomae": {"pixel_values": 4},
    "vivit": {"pixel_values": 4},
    "timesformer": {"pixel_values": 4},
}
_SWITCHES = ("use_cache", "return_dict", "kwargs", "args", "num_items_in_batch")
_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


class ModelInputs:
    """What a model's forward pass takes.

    Args:
        model (`nn.Module`): the unwrapped model.
        task (`Task`): what is measured.
    """

    def __init__(self, model: nn.Module, task: Task):
        base = base_model(model)
        self.task, self.model_class = task, type(base).__name__
        self.config = getattr(base, "config", None)
        parameters = inspect.signature(base.forward).parameters
        self.names = [
            name for name in parameters if name not in (*LABELS, *_SWITCHES) and not name.startswith("output_")
        ]
        known = isinstance(base, PreTrainedModel)
        self.main: str | None = base.main_input_name if known else None
        self.needs_labels = "labels" in parameters and isinstance(task, RowLoss) and task.inner is None
        self.dtype = _dtype(base) if known else None
        choices = self.model_class in modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()
        self.token_axes = 2 if choices else task.token_axes
        self.generates = bool(getattr(self.config, "is_encoder_decoder", False))

    def are_in(self, item: Mapping[Any, Any]) -> bool:
        """Whether a dict holds what models are mostly called with, or this one is."""
        return any(key in _AXES or key == self.main for key in item)

    def may_be_in(self, item: Mapping[Any, Any]) -> bool:
        """Whether a dict holds anything that this model takes, or may take where nobody knows its inputs."""
        taken = any(key in self.names and not isinstance(item[key], (str, bytes, Mapping)) for key in item)
        return taken or (self.task.auto_class is None and self.main is None and bool(item))

    def rows(self, item: Feature, number: int) -> list[Feature]:
        """The rows of a dict of inputs: itself, or those of the batch that it is, without their padding.

        Raises:
            [`~lorif_hf.errors.QueryError`]: it is neither.
        """
        name = next((key for key in (self.main, *_AXES, *self.names) if key in item), None)
        if name is None or not self._is_batch(item, name, number):
            return [self._typed(item)]
        count = len(item[name])
        for key, value in item.items():
            if not hasattr(value, "__len__") or isinstance(value, (str, Mapping)) or len(value) != count:
                raise QueryError(
                    f"Query {number} is a batch of {count} rows, but its '{key}' has not one entry for each: pass "
                    "a list of dicts instead."
                )
        rows = [{key: value[i] for key, value in item.items()} for i in range(count)]
        if item.get("attention_mask") is not None and self._axes(name) == 1:
            rows = [self._unpadded(row) for row in rows]  # so that a query does not depend on the batch it came in
        return [self._typed(row) for row in rows]

    def check_text(self, number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where a query is text and the model takes none."""
        if self.main is not None and not any("input_ids" in name for name in self.names):
            raise QueryError(
                f"Query {number} is text, but a {self.model_class} takes '{self.main}': it is a query of another task "
                "than the index's. Pass what the model was trained on."
            )

    def check(self, feature: Feature, number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where a query holds nothing that the model takes."""
        if self.main is None or isinstance(self.task, Custom):
            return
        taken = [name for name in feature if name in self.names]
        # Perceiver takes its main input under the name of tokens too.
        instead = any("embeds" in name or name in ("encoder_outputs", "input_ids") for name in taken)
        if self.main in taken or instead:
            if self.needs_labels and not any(name in feature for name in LABELS):
                raise QueryError(
                    f"Query {number} has no labels, which the loss of a {self.model_class} is made of: add those that "
                    "it is to be measured at, under 'labels'."
                )
            return
        given = [name for name in feature if name not in LABELS]
        raise QueryError(
            f"Query {number} holds {shown(given) or 'nothing'}, but a {self.model_class} needs '{self.main}': it is a "
            "query of another task than the index's. Pass what the model was trained on"
            + (", or its images or audio with processing_class=." if self.main not in ("input_ids", "inputs") else ".")
        )

    def _axes(self, name: str) -> int | None:
        """Axes of one row's input; `None`: not known."""
        if name == "input_ids":
            return self.token_axes
        return _OTHER_AXES.get(getattr(self.config, "model_type", ""), {}).get(name, _AXES.get(name))

    def _is_batch(self, item: Feature, name: str, number: int) -> bool:
        try:
            values = torch.as_tensor(item[name])
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise QueryError(
                f"Query {number} has {name} that are no row and no matrix ({error}): pass a list of dicts instead."
            ) from None
        axes = self._axes(name)
        if axes is not None:
            return values.dim() == axes + 1
        # Not known: a batch has as many labels as rows.
        labels = next((item[key] for key in LABELS if hasattr(item.get(key), "__len__")), ())
        return values.dim() > 1 and len(labels) == len(values)

    def _unpadded(self, row: Feature) -> Feature:
        keep = torch.as_tensor(row["attention_mask"]).bool()
        return {key: self._kept(key, value, keep) for key, value in row.items()}

    def _kept(self, key: str, value: Any, keep: Tensor) -> Any:
        """Of an entry that has one value for each token, those of the tokens that are kept."""
        if self.generates and key in _DECODER:
            return value  # of the other side, whatever its length
        try:
            values = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            return value  # a text, say
        if values.shape != keep.shape:
            return value
        if key in LABELS and not self.task.makes_labels and bool((values[~keep] != -100).any()):
            return value  # labels of the row, as many as tokens by chance
        return values[keep]

    def _typed(self, row: Feature) -> Feature:
        """The row with its numbers in the model's precision: columns of a dataset come in any."""
        if self.dtype is None:
            return row
        typed = dict(row)
        for name in self.names:
            if name in row and _is_floating(row[name]):
                try:
                    typed[name] = torch.as_tensor(row[name]).to(self.dtype)
                except (TypeError, ValueError, RuntimeError):
                    continue  # ragged lists, which the forward pass will not take either
        return typed


def _is_floating(value: Any) -> bool:
    """Whether these are floating-point numbers: an array's dtype says so, and the first number of nested lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    kind = getattr(value, "dtype", None)
    if isinstance(kind, torch.dtype):
        return kind.is_floating_point
    return isinstance(value, float) or getattr(kind, "kind", None) == "f"


def _dtype(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
