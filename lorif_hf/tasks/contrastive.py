"""Losses that compare the rows of a batch with each other: refused by name, since no row has one of its own."""

import inspect
from typing import Any

from torch import nn

from ..errors import ObjectiveError
from ..layers.modules import base_model
from .own_loss import RowLoss, TrainerLoss


# Of sentence-transformers: other rows are negatives, or the rows of a batch are sorted against each other.
_IN_BATCH = {
    "MultipleNegativesRankingLoss",
    "CachedMultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "GISTEmbedLoss",
    "CachedGISTEmbedLoss",
    "MegaBatchMarginLoss",
    "BatchAllTripletLoss",
    "BatchHardTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchSemiHardTripletLoss",
    "CoSENTLoss",
    "AnglELoss",
}
_DEEPEST = 4  # losses around a loss (Matryoshka, adaptive layers)


def check_is_of_rows(model: nn.Module, task: RowLoss) -> None:
    """Raises [`~lorif_hf.errors.ObjectiveError`] where a model's own loss, or its Trainer's, is of whole batches.

    Args:
        model (`nn.Module`): the unwrapped model.
        task (`RowLoss`): the loss that is trained.
    """
    base = base_model(model)
    trainer = task.trainer if isinstance(task, TrainerLoss) else None
    named = _in_batch(getattr(trainer, "loss", None))
    if named is not None:
        raise _refused(type(base).__name__, named)
    if isinstance(task, TrainerLoss) and task.is_users_own():
        return
    option = inspect.signature(base.forward).parameters.get("return_loss")
    if option is not None and not option.default:  # who has a loss of each row returns it without being asked
        raise _refused(type(base).__name__, "return_loss=True")


def _in_batch(loss: Any, depth: int = 0) -> str | None:
    """The name of a loss over whole batches, among those that a Trainer of sentence-transformers has."""
    if depth > _DEEPEST or loss is None:
        return None
    if isinstance(loss, dict):  # one for each of several datasets
        return next((name for name in (_in_batch(each, depth + 1) for each in loss.values()) if name), None)
    for kind in type(loss).__mro__:
        if kind.__name__ in _IN_BATCH and kind.__module__.partition(".")[0] == "sentence_transformers":
            return kind.__name__
    return _in_batch(getattr(loss, "loss", None), depth + 1) if isinstance(loss, nn.Module) else None


def _refused(model: str, loss: str) -> ObjectiveError:
    return ObjectiveError(
        f"{model} is trained by a contrastive loss ({loss}): it compares the rows of a batch with each other, so that "
        "a row alone has none, and it cannot be attributed to single rows. If some loss of each row says what you ask "
        "for (of how alike its image and its text are, say), pass it as objective=, a function (model, batch) -> (B,)."
    )
