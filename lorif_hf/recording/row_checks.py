"""What a row must hold for the model to take it: found where the row can be named, not in the middle of a forward."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DatasetError
from ..layers.modules import base_model
from ..tasks.base import Task
from ..tasks.collation import LABELS, PaddingCollator
from ..tasks.cross_entropy import IGNORED
from ..tasks.input_limits import InputLimits
from .documents import DocumentCollator
from .row_access import must_pass, named_rows


def is_known_collator(collate: Any) -> bool:
    """Whether a collator takes every row's columns as they are: ours, and those of transformers. Others may fill in
    what is missing."""
    ours = isinstance(collate, (PaddingCollator, DocumentCollator))
    return ours or type(collate).__module__.startswith("transformers.")


def filled_columns(feature: Mapping[str, Any], names: Collection[str]) -> set[str]:
    """The columns of these names in which a row has a value."""
    return {name for name in names if feature.get(name) is not None}


def check_features(features: Sequence[Any], row_ids: Sequence[int], names: set[str], filled: set[str]) -> None:
    """Rows are dicts that have a value in the same columns as the first row of the dataset.

    A batch would leave out a column that one of its rows lacks, so that the other rows would be measured without it.

    Args:
        features: the rows as read.
        row_ids (`Sequence[int]`): their numbers.
        names (`set[str]`): columns that count.
        filled (`set[str]`): those of them in which row 0 has a value.
    """
    for row, feature in zip(row_ids, features, strict=True):
        check_is_row(feature, row)
        different = filled_columns(feature, names) ^ filled
        if different:
            name = min(different)
            has, has_not = (0, row) if name in filled else (row, 0)
            raise DatasetError(
                f"Row {has_not} has no value in column '{name}' (None), and row {has} has one. Fill it in, or leave "
                "such rows out of the training and of the index alike: dataset.filter(lambda row: "
                f"row['{name}'] is not None)."
            )
        ids = feature.get("input_ids")
        for name in ("attention_mask", "token_type_ids"):
            if name in feature and _length(feature[name]) not in (None, _length(ids)) and _length(ids) is not None:
                raise _lengths_differ(row, name, feature)


def check_is_row(feature: Any, row: int) -> None:
    """Raises [`~lorif_hf.errors.DatasetError`] where a row is no dict of columns."""
    if isinstance(feature, Mapping):
        return
    what = "None" if feature is None else f"a {type(feature).__name__}"
    raise DatasetError(
        f"Row {row} is {what}: expected a dict of columns by name, such as {{'input_ids': [...]}}. Name what the rows "
        "hold, or pass the data_collator that the training has."
    )


def check_sides(features: Sequence[Any], row_ids: Sequence[int], names: Sequence[str]) -> None:
    """Rows hold something in each of these columns, where the first of them is there at all.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: names the row that lacks one, and the column.
    """
    for row, feature in zip(row_ids, features, strict=True):
        if not isinstance(feature, Mapping) or not any(name in feature for name in names):
            continue  # of another form, which the Trainer's collator knows
        for name in names:
            if feature.get(name) is None or _length(feature[name]) == 0:
                what = "nothing" if feature.get(name) is None else "no token"
                raise DatasetError(
                    f"Row {row} has {what} in column '{name}': a preference needs {', '.join(map(repr, names))} in "
                    "every row. Leave such rows out of the training and of the index alike: dataset.filter(lambda "
                    f"row: row['{name}'])."
                )


def check_labelled(task: Task, batch: Mapping[str, Any]) -> None:
    """Raises [`~lorif_hf.errors.DatasetError`] where batches of rows lack the labels that a task needs."""
    missing = [name for name in task.label_names if name not in batch]
    if not task.needs_labels or not missing:
        return
    if task.name == "masked-lm":
        raise DatasetError(
            "The rows have no labels, and nothing masks them: pass the data_collator of the training, "
            "DataCollatorForLanguageModeling(tokenizer), whose masks are drawn once for each row; or rows whose "
            "input_ids hold mask tokens, with 'labels' that are -100 at all others."
        )
    named = " and ".join(f"'{name}'" for name in missing)
    raise DatasetError(
        f"The batches have no {' and no '.join(missing)}, which objective '{task.name}' needs; they have "
        f"{', '.join(batch)}. Add a {named} column, or a data_collator that makes one."
    )


def check_token_labels(features: Sequence[Any], row_ids: Sequence[int]) -> None:
    """Every token of a row has its label."""
    for row, feature in zip(row_ids, features, strict=True):
        lengths = [_length(feature.get(name)) for name in ("input_ids", "labels")]
        if None not in lengths and lengths[0] != lengths[1]:
            raise _lengths_differ(row, "labels", feature)


def check_kept(features: Sequence[Any], row_ids: Sequence[int], filled: set[str], batch: Mapping[str, Any]) -> None:
    """Every column that counts became a tensor of the batch."""
    for name in sorted(filled):
        if name in batch or (name in LABELS and "labels" in batch):
            continue
        for row, feature in zip(row_ids, features, strict=True):
            try:
                torch.as_tensor(feature[name])
            except (TypeError, ValueError, RuntimeError) as error:
                raise DatasetError(
                    f"Column '{name}' of row {row} holds {_shown(feature[name])}, which cannot become a tensor "
                    f"({error}). Make it numbers, or pass a data_collator that does."
                ) from error


def collated(collate: Callable[[list[Any]], Any], features: list[Any], row_ids: Sequence[int]) -> dict[str, Any]:
    """A batch of rows.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: names the row that the collator fails at.
    """
    try:
        return _as_batch(collate(features))
    except Exception as error:
        if must_pass(error):
            raise
        for row, feature in zip(row_ids, features, strict=True):
            try:
                _as_batch(collate([feature]))
            except Exception as alone:
                if must_pass(alone):
                    raise
                raise _not_collated(collate, [row], alone) from alone
        raise _not_collated(collate, row_ids, error) from error


def check_numbers(model: nn.Module, task: Task, batch: Mapping[str, Any], row_ids: Sequence[int]) -> None:
    """Token ids and labels are whole numbers that the model has a row of weights for.

    Args:
        model (`nn.Module`): the unwrapped model.
        task (`Task`): what the labels mean.
        batch (`Mapping`): tensors, the rows along the first axis.
        row_ids (`Sequence[int]`): what to call them.
    """
    base = base_model(model)
    ids, labels = batch.get("input_ids"), batch.get("labels")
    vocabulary = _vocabulary(base)
    mixed = any(
        isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2 for value in batch.values()
    )
    if isinstance(ids, Tensor) and vocabulary and not mixed:  # the place of an image may have any number
        _check_whole("input_ids", ids, row_ids)
        _check_range("input_ids", ids, (ids < 0) | (ids >= vocabulary), row_ids, _OUTSIDE.format(vocabulary))
    if not isinstance(labels, Tensor) or not labels.numel():
        return
    classes = getattr(getattr(base, "config", None), "num_labels", None)
    if task.label_kind == "tokens":
        known = vocabulary if task.labels_each_token else _output_vocabulary(base)
        if known:
            _check_whole("labels", labels, row_ids)
            outside = ((labels < 0) & (labels != IGNORED)) | (labels >= known)
            _check_range("labels", labels, outside, row_ids, _OUTSIDE.format(known))
    elif task.label_kind == "classes" and not task.labels_each_token:
        _check_classes(getattr(base, "config", None), labels, row_ids)
    elif task.label_kind == "classes" and isinstance(classes, int):
        _check_whole("labels", labels, row_ids)
        outside = ((labels < 0) & (labels != IGNORED)) | (labels >= classes)
        what = f"its classes are 0 to {classes - 1}. Set num_labels of the model, or mend the labels"
        _check_range("labels", labels, outside, row_ids, what)
    if task.labels_each_token and isinstance(ids, Tensor) and ids.shape != labels.shape:
        raise DatasetError(
            f"{named_rows(row_ids)}: input_ids {tuple(ids.shape)} and labels {tuple(labels.shape)} of the batch "
            "differ in shape, and every token needs its label. Pad both alike."
        )


def check_lengths(limits: InputLimits, batch: Mapping[str, Any], row_ids: Sequence[int]) -> None:
    """Rows have no more tokens than the model has positions, and their token types are known: else a GPU stops for
    good, in the middle of a forward and without a word of which row.

    Args:
        limits (`InputLimits`): of the model.
        batch (`Mapping`): tensors, the rows along the first axis.
        row_ids (`Sequence[int]`): what to call them.
    """
    ids, mask, types = (batch.get(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
    if limits.token_types and isinstance(types, Tensor) and types.dim() > 1:
        what = f"it knows {limits.token_types} types of tokens. Use the model's own tokenizer"
        _check_range("token_type_ids", types, (types < 0) | (types >= limits.token_types), row_ids, what)
    if not isinstance(ids, Tensor) or ids.dim() < 2 or "position_ids" in batch:
        return
    if not limits.positions or ids.shape[-1] <= limits.positions:
        return
    lengths = torch.full(ids.shape[:-1], ids.shape[-1])
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        lengths = (mask != 0).sum(dim=-1)
    longest = lengths.reshape(len(ids), -1).amax(dim=1)
    if int(longest.max()) > limits.positions:
        place = int((longest > limits.positions).nonzero()[0, 0])
        shown = named_rows([row_ids[place]] if len(ids) == len(row_ids) else row_ids).replace("R", "r", 1)
        raise DatasetError(
            f"The model cannot take {shown} ({int(longest[place])} tokens in column 'input_ids'): it has positions "
            f"for {limits.positions}. Truncate the rows (truncation=True, max_length={limits.positions})."
        )


_OUTSIDE = (
    "a token is outside its vocabulary of {} tokens. Use the model's own tokenizer, or "
    "model.resize_token_embeddings(len(tokenizer)) before the training"
)


def _check_classes(config: Any, labels: Tensor, row_ids: Sequence[int]) -> None:
    classes, problem = getattr(config, "num_labels", None), getattr(config, "problem_type", None)
    if not isinstance(classes, int):
        return
    if problem is None and classes > 1:
        floats = labels.is_floating_point()
        problem = "multi_label_classification" if floats else "single_label_classification"
    each = labels[0].numel()
    if problem == "single_label_classification":
        _check_whole("labels", labels, row_ids)
        outside = ((labels < 0) & (labels != IGNORED)) | (labels >= classes)
        what = f"its classes are 0 to {classes - 1}. Set num_labels of the model, or mend the labels"
        _check_range("labels", labels, outside, row_ids, what)
        expected = 1
    else:
        expected = classes
    if each != expected:
        raise DatasetError(
            f"{named_rows(row_ids)}: {each} labels a row (column 'labels'), and the model takes {expected} for "
            f"problem_type {problem or 'regression'!r} with num_labels={classes}. Labels of several classes are "
            "floats of 0 and 1, one a class; set model.config.problem_type where it was guessed wrong."
        )


def _check_whole(name: str, tensor: Tensor, row_ids: Sequence[int]) -> None:
    if tensor.is_floating_point() or tensor.is_complex():
        raise DatasetError(
            f"{named_rows(row_ids)}: column '{name}' holds {str(tensor.dtype)[6:]} numbers, expected whole ones "
            "(int64). Cast the column."
        )


def _check_range(name: str, tensor: Tensor, outside: Tensor, row_ids: Sequence[int], what: str) -> None:
    if not bool(outside.any()):
        return
    place = outside.reshape(len(outside), -1).any(dim=1).nonzero()[0, 0] if outside.dim() else 0
    value = int(tensor[outside][0])
    rows = [row_ids[int(place)]] if len(outside) == len(row_ids) else row_ids
    shown = named_rows(rows).replace("R", "r", 1)
    raise DatasetError(f"The model cannot take {shown} ({value} in column '{name}'): {what}.")


def _vocabulary(base: Any) -> int | None:
    """How many token ids the model knows; `None` where it takes no tokens."""
    try:
        embedding = base.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    rows = getattr(embedding, "num_embeddings", None)
    config: Any = getattr(base, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = [size for size in (rows, getattr(config, "vocab_size", None)) if isinstance(size, int)]
    return max(sizes) if rows is not None else None


def _output_vocabulary(base: Any) -> int | None:
    """How many token ids the model can say."""
    try:
        head = base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None
    size = getattr(getattr(head, "weight", None), "shape", (None,))[0]
    config = getattr(base, "config", None)
    return size if size is not None else getattr(config, "vocab_size", None)


def _length(value: Any) -> int | None:
    """Of a list or a vector, its length; of anything else, nothing."""
    if isinstance(value, (list, tuple)) or (hasattr(value, "shape") and len(value.shape) == 1):
        return len(value)
    return None


def _lengths_differ(row: int, name: str, feature: Mapping[str, Any]) -> DatasetError:
    return DatasetError(
        f"Row {row} has {_length(feature['input_ids'])} tokens in column 'input_ids' and {_length(feature[name])} "
        f"values in column '{name}': every token needs one. Truncate both alike."
    )


def _as_batch(batch: Any) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise DatasetError(
            f"The data_collator returned a {type(batch).__name__}: expected a dict of tensors by the model's names."
        )
    return dict(batch)


def _not_collated(collate: Any, row_ids: Sequence[int], error: Exception) -> DatasetError:
    named = getattr(collate, "__qualname__", type(collate).__qualname__)
    return DatasetError(
        f"{named_rows(row_ids)} could not be collated by {named} ({type(error).__name__}: {error}). Look at the "
        "columns, or pass a data_collator that can take them."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
