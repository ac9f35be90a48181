"""Features to batches, for datasets that come without a data collator."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DatasetError
from ..layers.modules import base_model


LABELS = ("labels", "label", "label_ids")
"""What columns of labels are called; batches call them by the first."""


class PaddingCollator:
    """Pads every list-like column on the right to the longest row and stacks the rest.

    `labels` are padded with -100 and `attention_mask` with 0; a row without a mask gets ones. Where `make_labels` is
    set, a row without labels is measured on its own tokens, as a causal language model is trained.

    Args:
        pad_token_id (`int`, *optional*, defaults to 0): what pads `input_ids`.
        make_labels (`bool`, *optional*, defaults to `False`): copy `input_ids` to absent `labels`.
    """

    def __init__(self, pad_token_id: int | None = None, make_labels: bool = False):
        self.padding = {"input_ids": pad_token_id or 0, "labels": -100}
        self.make_labels = make_labels

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [self._complete(feature) for feature in features]
        keys = [key for key in rows[0] if all(key in row for row in rows)]
        return {key: self._stack(key, [row[key] for row in rows]) for key in keys}

    def _complete(self, feature: Mapping[str, Any]) -> dict[str, Tensor]:
        row = {}
        for key, value in feature.items():
            # As transformers' own collators do; names of people and texts cannot be tensors and are left behind.
            if value is not None and not isinstance(value, (str, bytes, Mapping)):
                name = "labels" if key in LABELS else key
                try:
                    row[name] = computable(name, torch.as_tensor(value))
                except (TypeError, ValueError, RuntimeError):
                    continue
        for key in row.keys() & {"input_ids", "labels", "attention_mask"}:
            if not row[key].numel():
                row[key] = row[key].long()  # an empty list has no type; torch takes it for floats
        if "input_ids" in row:
            row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
            if self.make_labels:
                row.setdefault("labels", row["input_ids"].masked_fill(row["attention_mask"] == 0, -100))
        return row

    def _stack(self, key: str, values: list[Tensor]) -> Tensor:
        if values[0].dim() == 0 or len({tuple(value.shape) for value in values}) == 1:
            return torch.stack(values)
        if len({value.shape[:-1] for value in values}) == 1 and values[0].dim() > 1 and not _has_floats(values):
            width = max(value.shape[-1] for value in values)
            fill = self.padding.get(key, 0)
            return torch.stack([F.pad(value, (0, width - value.shape[-1]), value=fill) for value in values])
        if any(value.dim() != 1 for value in values):
            raise DatasetError(
                f"Column '{key}' has rows of different shapes ({', '.join(str(tuple(v.shape)) for v in values[:3])}); "
                "pass a data_collator that knows how to pad it."
            )
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=self.padding.get(key, 0))


def goes_with(first: Mapping[str, Any], second: Mapping[str, Any], unpadded: bool = False) -> bool:
    """Whether two rows go into one batch without a change to either: padding is told apart by a mask where it is of
    tokens, and of nothing else.

    Args:
        first, second (`Mapping`): the rows.
        unpadded (`bool`, *optional*, defaults to `False`): whether their tokens must not be padded either.
    """
    return _form(first, unpadded) == _form(second, unpadded)


def _form(row: Mapping[str, Any], unpadded: bool) -> dict[str, Any]:
    """What must be the same of rows padded to one length: names, axes, and the shapes of what is no tokens."""
    tensors = {name: _as_tensor(value) for name, value in row.items()}
    ids = tensors.get("input_ids")
    form: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            form[name] = None
        elif unpadded:
            form[name] = tensor.shape
        elif tensor.dim() < 2 and not (tensor.is_floating_point() and tensor.numel()):
            form[name] = tensor.dim()
        elif ids is not None and tensor.shape == ids.shape and not tensor.is_floating_point():
            form[name] = tensor.shape[:-1]
        else:
            form[name] = tensor.shape
    return form


def _as_tensor(value: Any) -> Tensor | None:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _has_floats(values: Sequence[Tensor]) -> bool:
    return any(value.is_floating_point() for value in values)


def joined(batches: Sequence[Mapping[str, Any]], padding: Mapping[str, int]) -> dict[str, Any]:
    """Batches of a row each as one batch, padded on the right.

    Args:
        batches (`Sequence[Mapping]`): tensors whose first axis is that of the rows; what is none is the first row's.
        padding (`Mapping[str, int]`): what pads an entry; 0 pads the others.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: they differ in entries, or in shape by more than a length.
    """
    first = batches[0]
    if len(batches) == 1:
        return dict(first)
    whole: dict[str, Any] = {}
    for key, value in first.items():
        if not isinstance(value, Tensor):
            whole[key] = value
            continue
        parts = [batch.get(key) for batch in batches]
        shapes = [tuple(part.shape) for part in parts if isinstance(part, Tensor)]
        if len(shapes) < len(parts) or any(len(s) != len(shapes[0]) or s[2:] != shapes[0][2:] for s in shapes):
            raise DatasetError(
                f"The collator makes different entries '{key}' of single rows ({', '.join(map(str, shapes[:3]))}), "
                "which cannot be put together: use batch_size=1, or a data_collator that pads them alike."
            )
        width = max((shape[1] for shape in shapes if len(shape) > 1), default=0)
        whole[key] = torch.cat([_widened(part, width, padding.get(key, 0)) for part in parts])
    return whole


def _widened(tensor: Any, width: int, value: int) -> Tensor:
    """(n, T, ...) with T filled up to a width."""
    gap = width - tensor.shape[1] if tensor.dim() > 1 else 0
    widened: Tensor = torch.nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, gap), value=value)
    return widened if gap else tensor


def computable(name: str, tensor: Tensor) -> Tensor:
    """A column's tensor in a dtype that models compute with: ids, labels and masks as int64."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.int64:
        return tensor
    are_ids = name == "labels" or name.endswith("_ids") or (name.endswith("attention_mask") and tensor.dim() < 3)
    return tensor.long() if are_ids or tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def with_a_token(batch: dict[str, Any], padding: Mapping[str, int]) -> dict[str, Any]:
    """A batch of empty rows alone, with a token of padding in each: models cannot take none. It has no target."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] or not len(ids):
        return batch
    size = len(ids)
    widened = {
        key: torch.full((size, 1), padding.get(key, 0))
        for key, value in batch.items()
        if isinstance(value, Tensor) and tuple(value.shape) == (size, 0)
    }
    return {**batch, **widened, "attention_mask": torch.zeros(size, 1, dtype=torch.int64)}


def padding_collator(model: Any, processing_class: Any, make_labels: bool) -> PaddingCollator:
    """The collator of rows and queries that come without one: pads with the tokenizer's token, else the model's."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        pad = getattr(getattr(base_model(model), "config", None), "pad_token_id", None)
    return PaddingCollator(pad, make_labels)
