"""One token of a query's answer at a time: the same query with the labels of the others masked."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QueryError
from ..layers.modules import base_model
from ..recording.stored_weights import execution_device
from ..tasks import Feature, Task
from ..tasks.collation import LABELS, PaddingCollator
from ..tasks.cross_entropy import IGNORED
from ..tasks.own_loss import RowLoss


def measured_tokens(
    feature: Feature, model: nn.Module, task: Task, collator: PaddingCollator, number: int
) -> tuple[Feature, list[int]]:
    """A query with labels of its own, and the positions in them that are measured, ascending.

    The losses of these tokens, each alone, add up to the query's.

    Args:
        feature (`Feature`): the query.
        model (`nn.Module`): the unwrapped model.
        task (`Task`): what is measured.
        collator (`PaddingCollator`): makes the labels of a query without.
        number (`int`): the query's, for errors.

    Raises:
        [`~lorif_hf.errors.QueryError`]: its loss is no sum over tokens.
    """
    batch = collator([feature])
    labels = batch.get("labels")
    aligned = getattr(getattr(base_model(model), "config", None), "ctc_loss_reduction", None) is not None
    if labels is None or labels.dim() != 2 or labels.is_floating_point() or aligned:
        raise _no_tokens(number, task)
    labels = labels[0]
    positions = (labels != IGNORED).nonzero()[:, 0]
    alone = torch.full((len(positions), len(labels)), IGNORED)
    alone[torch.arange(len(positions)), positions] = labels[positions]
    if isinstance(task, RowLoss):
        if positions[:1].tolist() == [0] and not _counts(model, task, {**batch, "labels": alone[:1]}):
            positions = positions[1:]
    else:
        # What tells targets apart is made of tokens; pixels need not be copied for each.
        small = {key: value for key, value in batch.items() if value.dim() <= 2 and not value.is_floating_point()}
        repeated = {key: value.expand(len(positions), *value.shape[1:]) for key, value in small.items()}
        counts = task.targets({**repeated, "labels": alone})
        whole = task.targets({**small, "labels": labels.unsqueeze(0)})
        if counts is not None and whole is not None:
            positions = positions[counts > 0]
            if len(positions) != int(whole[0]):
                raise _no_tokens(number, task)
    if not len(positions):
        raise QueryError(f"Query {number} has no token to measure: each label is -100, or of a first token.")
    kept = {key: value for key, value in feature.items() if key not in LABELS}
    return {**kept, **_decoder_inputs(feature, model, labels), "labels": labels}, positions.tolist()


def _counts(model: nn.Module, task: RowLoss, batch: dict[str, Any]) -> bool:
    """Whether a model's own loss is of this row's label: it may be shifted away. Only the model knows."""
    device = execution_device(model)
    try:
        with torch.no_grad():
            loss = task.losses(model, {key: value.to(device) for key, value in batch.items()})
    except (IndexError, ValueError, RuntimeError):
        return True  # it will fail again, and be told as the query's error
    return bool(torch.isfinite(loss).all()) and bool(loss.any())


def _decoder_inputs(feature: Feature, model: nn.Module, labels: Tensor) -> Feature:
    """What a decoder reads, of all labels: it makes that of the labels it gets, which are masked from here on."""
    base = base_model(model)
    config = getattr(base, "config", None)
    if not getattr(config, "is_encoder_decoder", False) or "decoder_input_ids" in feature:
        return {}
    shifted = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None:
        ids: Tensor = shifted(labels=labels.unsqueeze(0))[0]
        return {"decoder_input_ids": ids}
    start, padding = getattr(config, "decoder_start_token_id", None), getattr(config, "pad_token_id", None)
    ids = torch.cat([torch.tensor([start or 0]), labels[:-1]])
    return {"decoder_input_ids": ids.masked_fill(ids == IGNORED, padding or 0)}


def token_alone(feature: Feature, position: int) -> Feature:
    """A query of [`measured_tokens`], measured on a single token."""
    labels: Tensor = feature["labels"]
    masked: Any = torch.full_like(labels, IGNORED)
    masked[position] = labels[position]
    return {**feature, "labels": masked}


def _no_tokens(number: int, task: Task) -> QueryError:
    return QueryError(
        f"The loss of query {number} is no sum over tokens (objective '{task.name}'), so none of them can be asked "
        "alone: leave out per_token= and token=."
    )
