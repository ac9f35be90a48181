"""A model's own loss, or a Trainer's, one row at a time: the truth that every other task must equal.

It is slow, and right for whatever is trained: at one row at a time, every token belongs to that row.
"""

import functools
import inspect
import math
import sys
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ObjectiveError, QueryError
from ..layers.modules import base_model
from .base import Feature, Task, forward_inputs, known_task, no_margin
from .cross_entropy import IGNORED
from .text import TextReader
from .trainer_state import flags_kept, notes_kept


_COUNT = "num_items_in_batch"  # transformers' name of what a loss summed over targets is divided by


class RowLoss(Task):
    """The loss of a single row as somebody else computes it, summed over the row's targets.

    A loss that can be told to divide by `num_items_in_batch` divides by 1. Else, one that is a mean over the labels
    other than -100 (which a row tells whose labels are left out by halves) is multiplied by their number; another is
    taken as it comes.

    Args:
        inner (`Task` or `None`): the task of the model, which knows how its queries are written; `None`: nobody knows.
    """

    auto_class = None
    needs_labels = False
    alone = True

    def __init__(self, inner: Task | None = None):
        self.inner = inner
        self.makes_labels = inner is not None and inner.makes_labels  # type: ignore[misc]
        self.labelled_queries = inner is not None and inner.labelled_queries  # type: ignore[misc]
        self.query_example = inner.query_example if inner else "row"  # type: ignore[misc]
        self.decoded = inner.decoded if inner else ("input_ids",)  # type: ignore[misc]
        self._divides: bool | None = None  # whether the loss heeds `num_items_in_batch`; `None`: not known yet
        self._averages: bool | None = None  # whether it is a mean over the labels; `None`: not known yet
        self._shifts: bool | None = None  # whether the first label is none; `None`: not known yet

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Any], items: int) -> Tensor:
        """The loss of a batch, a scalar with a graph. `items`: divide its sum over targets by so many, if possible."""

    def usually_mean(self) -> bool:
        """Whether a loss of which nothing else is known is a mean over the labels."""
        return True

    def accepts(self, model: nn.Module) -> bool:
        return False

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        loss = self.loss(model, batch, 1).reshape(1).float()
        if self._divides is None and bool(torch.isfinite(loss)) and bool(loss) and _labelled(batch) != 0:
            with torch.no_grad():
                self._divides = float(self.loss(model, batch, 2)) != float(loss)
        if self._divides is None:  # the loss is zero, or there is nothing to average
            return loss if bool(torch.isfinite(loss)) or _targets(batch) else torch.zeros(1)
        if self._divides:
            return loss
        if self._averages is None:
            self._averages = self._is_mean(model, batch)
        factor = self._factor(model, batch) if self._averages is not False else 1.0
        return loss * factor if factor else torch.zeros(1)  # a mean over no target is none

    def targets(self, batch: dict[str, Any]) -> Tensor | None:
        count = _labelled(batch)
        return None if count is None else torch.tensor([count])

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        if self.inner is None:
            raise QueryError(
                f"Query {number} is a pair of texts, and the index does not know what such a model makes of one: pass "
                "a dict of the model's inputs and labels."
            )
        return self.inner.query_pair(reader, text, target, number)

    def check_query(self, feature: Feature, number: int) -> None:
        if self.inner is not None:
            self.inner.check_query(feature, number)

    def _is_mean(self, model: nn.Module, batch: dict[str, Any]) -> bool | None:
        """Whether the loss is a mean over the labels; `None` where this row has too few to tell.

        With n labels, of which a are left out in turn and then the b others: n L = a L_a + b L_b of a mean, and
        L = L_a + L_b of a sum. Where neither holds (labels that are inputs too), what is usual is taken.
        """
        ctc = getattr(getattr(base_model(model), "config", None), "ctc_loss_reduction", None)
        if _labelled(batch) is None or ctc is not None:  # CTC's labels are one target, whatever their number
            return False
        labels = batch["labels"].clone()
        labels[:, 0] = IGNORED  # whoever shifts his labels does not count it
        places = (labels[0] != IGNORED).nonzero()[:, 0]
        if len(places) < 2:
            return None
        halves = places[: len(places) // 2], places[len(places) // 2 :]
        losses = []
        with torch.no_grad():
            for left_out in (None, *halves):
                kept = labels.clone()
                if left_out is not None:
                    kept[:, left_out] = IGNORED
                losses.append(float(self.loss(model, batch | {"labels": kept}, 1)))
        whole, second, first = losses
        mean = (len(halves[0]) * first + len(halves[1]) * second) / len(places)
        if whole == first == second or math.isclose(whole, first + second, rel_tol=1e-2):
            return False  # the labels do not matter, or it is a sum
        return math.isclose(whole, mean, rel_tol=1e-2) or self.usually_mean()

    def _factor(self, model: nn.Module, batch: dict[str, Any]) -> float:
        """What a mean over the targets of a row is multiplied by."""
        count = _labelled(batch)
        if count is None:
            return 1.0
        labels = batch["labels"]
        if int((labels[:, 0] != IGNORED).sum()) == 0 or labels.shape[1] < 2:
            return float(count)
        if self._shifts is None:
            # Whoever shifts his labels never looks at the first.
            without = labels.clone()
            without[:, 0] = IGNORED
            with torch.no_grad():
                losses = [float(self.loss(model, batch | {"labels": those}, 1)) for those in (labels, without)]
            self._shifts = losses[0] == losses[1]
        return float(count - int((labels[:, 0] != IGNORED).sum()) if self._shifts else count)


class ModelLoss(RowLoss):
    """The loss that the model itself returns."""

    name = "model"

    def loss(self, model: nn.Module, batch: dict[str, Any], items: int) -> Tensor:
        inputs = forward_inputs(model, batch)
        if "labels" in batch and _takes(base_model(model).forward, "labels"):
            inputs["labels"] = batch["labels"]
        if _takes(base_model(model).forward, _COUNT):
            inputs[_COUNT] = _on_device_of(batch, items)
        outputs = model(**inputs)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if loss is None and isinstance(outputs, tuple) and isinstance(outputs[0], Tensor) and outputs[0].numel() == 1:
            loss = outputs[0]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = ", ".join(inputs.keys() - {_COUNT})
            raise ObjectiveError(
                f"{type(base_model(model)).__name__} returns no loss of {given}: add the labels that it is trained on "
                "to the rows, or pass objective=, a function (model, batch) -> (B,) of their losses."
            )
        return loss


class TrainerLoss(RowLoss):
    """What a Trainer's `compute_loss` returns.

    Args:
        trainer (`transformers.Trainer`): the one that trains the model.
        inner (`Task` or `None`): as of [`RowLoss`].
    """

    name = "trainer"

    def __init__(self, trainer: Any, inner: Task | None = None):
        super().__init__(inner)
        self.trainer = trainer
        own = getattr(trainer, "compute_loss_func", None)
        smoothing = getattr(getattr(trainer, "args", None), "label_smoothing_factor", 0.0)
        # What tells one such loss from another.
        self.__wrapped__ = functools.partial(type(trainer).compute_loss, compute_loss_func=own, smoothing=smoothing)

    def loss(self, model: nn.Module, batch: dict[str, Any], items: int) -> Tensor:
        options: dict[str, Any] = {}
        if _takes(self.trainer.compute_loss, _COUNT):
            options[_COUNT] = _on_device_of(batch, items)
        with notes_kept(self.trainer), flags_kept(model):
            loss = self.trainer.compute_loss(model, dict(batch), **options)
        if isinstance(loss, tuple):
            loss = loss[0]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ObjectiveError(
                f"{type(self.trainer).__name__}.compute_loss returned {type(loss).__name__}, no loss."
            )
        return cast(Tensor, loss)

    def usually_mean(self) -> bool:
        return not self.is_users_own()

    def smooths(self) -> bool:
        """Whether labels are smoothed, which is no plain cross-entropy by however little it differs."""
        return getattr(self.trainer, "label_smoother", None) is not None

    def is_users_own(self) -> bool:
        """Whether the loss is none of transformers' or TRL's: nobody knows what it does to other rows."""
        function = getattr(self.trainer.compute_loss, "__func__", self.trainer.compute_loss)
        known = _is_of(function, "transformers", "trl")
        return getattr(self.trainer, "compute_loss_func", None) is not None or not known


def model_loss(model: nn.Module) -> ModelLoss:
    """The own loss of an unwrapped model."""
    return ModelLoss(known_task(model))


def trainer_loss(trainer: Any, model: nn.Module) -> TrainerLoss:
    """The loss of a Trainer over an unwrapped model."""
    return TrainerLoss(trainer, known_task(model))


def _labelled(batch: Mapping[str, Any]) -> int | None:
    """How many tokens have a label, where tokens have labels; else `None`: the row has a single target."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return None
    return int((labels != IGNORED).sum())


def _targets(batch: Mapping[str, Any]) -> bool:
    """Whether a row has a target even for a model that shifts its labels."""
    labels = batch.get("labels")
    return _labelled(batch) is None or bool((labels[:, 1:] != IGNORED).any())  # type: ignore[index]


def _on_device_of(batch: Mapping[str, Any], number: int) -> Tensor:
    """A number as a tensor where the batch is."""
    devices = (value.device for value in batch.values() if isinstance(value, Tensor))
    return torch.tensor(number, device=next(devices, None))


def has_users_loss(model: nn.Module) -> bool:
    """Whether a model's loss is none of those that come with its class: it was put there, or the class is a user's of
    the same name."""
    base = base_model(model)
    module = type(base).__module__.partition(".")[0]
    return "_loss_function" in vars(base) or module not in ("transformers", "transformers_modules")


def _is_of(function: Any, *packages: str) -> bool:
    """Whether the code of a function, whatever it says of itself, is in a file of one of these packages."""
    file = getattr(getattr(function, "__code__", None), "co_filename", "")
    folders = [getattr(sys.modules.get(package), "__path__", [None])[0] for package in packages]
    return any(folder is not None and file.startswith(folder) for folder in folders)


def _takes(function: Any, name: str) -> bool:
    """Whether a function can be called with an argument of this name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
