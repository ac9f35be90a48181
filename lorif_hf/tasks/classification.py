"""What classifiers of every input have in common: a loss by the model's `problem_type`, and labels by name."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ObjectiveError, QueryError
from ..layers.modules import base_model
from .base import Feature, Task, batch_size, forward_inputs, no_margin
from .cross_entropy import IGNORED
from .model_classes import classes_of


_NUMBERS = ("regression", "multi_label_classification")  # problems without a right class


class Classifier(Task):
    """Cross-entropy, mean squared error or binary cross-entropy, by the model's `problem_type`, as transformers does.

    A query without labels is measured at the model's own prediction: why did the model say this? A kind says which
    classes of transformers it is of, and what a query that is a text means.

    Attributes:
        table (`str`): as of [`classes_of`].
    """

    needs_labels = True
    makes_labels = False
    labelled_queries = True
    label_kind = "classes"
    table: ClassVar[str]

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in classes_of(self.table)

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return class_losses(model, _logits(model, batch), batch.get("labels"))

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return class_targets(batch)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return class_predictions(self.name, model, _logits(model, batch), batch.get("labels"))

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model's own prediction can always be measured


def _logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = model(**forward_inputs(model, batch)).logits
    return logits.float()


def class_losses(model: nn.Module, logits: Tensor, labels: Tensor | None) -> Tensor:
    """Cross-entropy, mean squared error or binary cross-entropy, by the model's `problem_type`, as transformers does.

    Args:
        model (`nn.Module`): the unwrapped model; its config says which.
        logits (`Tensor`): (B, classes).
        labels (`Tensor` or `None`): (B,), (B, 1) or (B, classes); -100 counts for nothing. `None`: the model's own
            prediction, where it has one.

    Returns:
        `Tensor`: (B,) nats.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: there are no labels, and no class to predict.
    """
    problem = base_model(model).config.problem_type
    if labels is None:
        labels = logits.detach().argmax(dim=-1)
        if problem in _NUMBERS or logits.shape[-1] == 1:
            raise ObjectiveError(f"A {problem or 'regression'} query needs its target: pass (text, label).")
    if problem is None:
        integer = not labels.is_floating_point()
        problem = "multi_label_classification"
        if logits.shape[-1] == 1:
            problem = "regression"
        elif integer:
            problem = "single_label_classification"
    if problem == "single_label_classification":
        return F.cross_entropy(logits, labels.view(-1), ignore_index=IGNORED, reduction="none")
    labels = labels.to(logits.dtype).view(logits.shape)
    if problem == "regression":
        return F.mse_loss(logits, labels, reduction="none").mean(dim=-1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)


def class_targets(batch: dict[str, Any]) -> Tensor:
    """(B,) 1 for each example with a label."""
    size, labels = batch_size(batch), batch.get("labels")
    return torch.ones(size, dtype=torch.int64) if labels is None else (labels != IGNORED).reshape(size, -1).any(1)


def class_predictions(name: str, model: nn.Module, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (B, 1, classes) and labels (B, 1) of a task of this name; arguments as of [`class_losses`].

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: there is no right class.
    """
    labels = logits.detach().argmax(dim=-1) if labels is None else labels
    problem = base_model(model).config.problem_type
    if problem is None and labels.is_floating_point():
        problem = "multi_label_classification"
    if problem in _NUMBERS or logits.shape[1] < 2:
        raise no_margin(name)
    return logits.unsqueeze(1), labels.view(-1, 1)


def class_number(config: Any, label: Any, number: int) -> Any:
    """The number of a class that a query names, or what it gives instead, where that is a label of the model.

    Raises:
        [`~lorif_hf.errors.QueryError`]: the model has no such class.
    """
    names = getattr(config, "id2label", None) or {}
    if isinstance(label, str):
        known = getattr(config, "label2id", None) or {name: place for place, name in names.items()}
        if label not in known:
            raise QueryError(f"Query {number} has label '{label}'; the model's labels are {', '.join(known)}.")
        label = known[label]
    if isinstance(label, int) and len(names) > 1 and label not in names:
        raise QueryError(f"Query {number} has label {label}; the model's labels are {', '.join(names.values())}.")
    return label


def no_text(what: str, inputs: str, number: int) -> QueryError:
    """The error of a query that is text, of a model that takes none."""
    return QueryError(
        f"Query {number} is text, and {what} takes none: pass a dict of the model's inputs ({inputs}), and of labels "
        "where they are known."
    )
