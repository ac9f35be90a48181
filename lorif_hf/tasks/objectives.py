"""What is differentiated of a task: its loss, or the margin of its right classes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ObjectiveError
from ..layers.modules import base_model
from ..registry import TASKS
from .base import Task, UserObjective, forward_inputs, known_task, losses_of
from .cross_entropy import IGNORED, cross_entropy
from .custom import Custom
from .own_loss import ModelLoss, TrainerLoss, model_loss, trainer_loss
from .segments import sums_by_example


@dataclass(frozen=True)
class Values:
    """What an objective gives of a batch.

    Args:
        losses (`Tensor`): (B,) nats, with a graph.
        weights (`Tensor` or `None`): float32 (B,) on the CPU, what each example counts for; `None`: 1 each.
    """

    losses: Tensor
    weights: Tensor | None = None


class Objective(ABC):
    """What is differentiated: `objective(model, batch)` gives its values, one per example.

    Args:
        task (`Task`): of the model.
    """

    def __init__(self, task: Task):
        self.task = task

    @abstractmethod
    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Values:
        """The values of a batch."""


class LossObjective(Objective):
    """The task's loss."""

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Values:
        return Values(losses_of(self.task, model, batch))


class MarginObjective(Objective):
    """Minus the log-odds log(p / (1 - p)) of the right class, summed over an example's targets.

    An example counts for 1 - p of its right class (the mean over its targets), the derivative of its loss by the
    margin.

    Source: TRAK (Park et al. 2023, arXiv:2303.14186), which has one target an example; the sum over tokens is ours.
    """

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Values:
        logits, labels = self.task.predictions(model, batch)
        counts = labels != IGNORED
        right = F.one_hot(labels.clamp_min(0), logits.shape[-1]).bool()
        chosen = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        margins = (chosen - logits.masked_fill(right, -torch.inf).logsumexp(dim=-1)) * counts
        targets = sums_by_example(counts.long(), batch).clamp_min(1)
        doubt = sums_by_example(torch.sigmoid(-margins.detach()) * counts, batch) / targets
        return Values(-sums_by_example(margins, batch), doubt.to("cpu", torch.float32))


class LikelihoodObjective(Objective):
    """-log p of the labels, summed over an example's targets, in nats."""

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Values:
        logits, labels = self.task.predictions(model, batch)
        return Values(cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1))


class RewardObjective(Objective):
    """Minus the single number that a reward model gives of an example."""

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Values:
        return Values(-model(**forward_inputs(model, batch)).logits.float()[:, 0])


OUTPUTS: dict[str, type[Objective]] = {"loss": LossObjective, "margin": MarginObjective}
"""By `InfluenceConfig.output`."""


def task_of(model: nn.Module, objective: "UserObjective | Task | str | None" = None, trainer: Any = None) -> Task:
    """The task that fits the model's class, the named one, or the user's own.

    Args:
        model (`nn.Module`): the unwrapped model.
        objective (*optional*): the name of a registered task, "model" (its own loss), "trainer" (that of the Trainer),
            a [`Task`], or a function `(model, batch) -> (B,)`.
        trainer (*optional*): the Trainer.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: the model is of no known task and no objective was given.
        [`~lorif_hf.errors.UnknownKindError`]: no task of that name is registered.
    """
    if objective == ModelLoss.name:
        return model_loss(model)
    if objective == TrainerLoss.name:
        if trainer is None:
            raise ObjectiveError(
                "objective='trainer' needs the Trainer: InfluenceCallback(path, trainer=trainer, objective='trainer')."
            )
        return trainer_loss(trainer, model)
    if isinstance(objective, str):
        return TASKS.get(objective)
    if objective is not None:
        return objective if isinstance(objective, Task) else Custom(objective)
    task = known_task(model)
    if task is None:
        raise ObjectiveError(
            f"No training objective is known for {type(base_model(model)).__name__}: known are models for "
            f"{', '.join(sorted(task.name for task in TASKS))}. Pass objective=, a function (model, batch) -> (B,) "
            "tensor of per-example losses, or register a task of your own (lorif_hf.tasks.register)."
        )
    return task
