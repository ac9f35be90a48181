"""Per-example training objectives.

Every objective is a sum over the example's own targets, in nats: an example's gradient must not depend on its batch.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from ..errors import ObjectiveError
from ..layers.modules import base_model
from .cross_entropy import IGNORED, cross_entropy


UserObjective = Callable[[nn.Module, dict[str, Any]], Tensor]

_TASKS = {
    "causal-lm": ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "sequence-classification": (
        "AutoModelForSequenceClassification",
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
}


class Objective:
    """A per-example loss: `objective(model, batch)` gives (B,) losses in nats.

    Args:
        name (`str`): what the manifest says.
        loss (`UserObjective`): takes the model and a batch of tensors, gives a (B,) tensor with a graph.
    """

    name: str = "custom"
    needs_labels = False
    weights: Tensor | None = None
    """What each example of the last batch counts for, float32 (B,) on the CPU, where the objective weights them."""

    def __init__(self, loss: UserObjective):
        self.function = loss

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return self.function(model, batch)

    def targets(self, batch: dict[str, Any]) -> Tensor | None:
        """(B,) number of targets each example is measured on, or `None` where the objective does not tell."""
        return None

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (B, T, classes) and labels (B, T), -100 where nothing is predicted, of an objective with classes."""
        raise ObjectiveError(
            f"Objective '{self.name}' has no margin: output='margin' is for causal language models and classifiers "
            "with one right class. Use output='loss'."
        )

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        losses = self.loss(model, batch)
        size = batch_size(batch)
        if not isinstance(losses, Tensor) or losses.shape != (size,):
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ObjectiveError(
                f"Objective '{self.name}' must return one loss per example, shape ({size},), got {found}. Sum over an "
                "example's tokens, never over the batch."
            )
        return losses


class CausalLMObjective(Objective):
    """Cross-entropy of the next token, summed over the labels that are not -100."""

    name = "causal-lm"
    needs_labels = True

    def __init__(self) -> None:
        super().__init__(self._cross_entropy)

    def _cross_entropy(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(**forward_inputs(model, batch)).logits.float(), self._next_tokens(batch)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return (self._next_tokens(batch) != IGNORED).sum(dim=1)

    @staticmethod
    def _next_tokens(batch: dict[str, Any]) -> Tensor:
        """The label that each position predicts; the last predicts nothing, and neither does padding on the left.

        Labels are shifted, not logits: a slice of those would have to be copied.
        """
        labels, mask = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED), batch.get("attention_mask")
        return labels if mask is None or mask.dim() != 2 else labels.masked_fill(mask == 0, IGNORED)


class SequenceClassificationObjective(Objective):
    """Cross-entropy, mean squared error or binary cross-entropy, by the model's `problem_type`, as transformers does.

    A query without labels is measured at the model's own prediction: why did the model say this?
    """

    name = "sequence-classification"
    needs_labels = True

    def __init__(self) -> None:
        super().__init__(self._problem_loss)

    def _problem_loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits = model(**forward_inputs(model, batch)).logits.float()
        problem = base_model(model).config.problem_type
        labels = batch.get("labels")
        if labels is None:
            labels = logits.detach().argmax(dim=-1)
            if problem in ("regression", "multi_label_classification") or logits.shape[-1] == 1:
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

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = model(**forward_inputs(model, batch)).logits.float()
        labels = batch.get("labels")
        labels = logits.detach().argmax(dim=-1) if labels is None else labels
        problem = base_model(model).config.problem_type
        if problem is None and labels.is_floating_point():
            problem = "multi_label_classification"
        if problem in ("regression", "multi_label_classification") or logits.shape[1] < 2:
            return super().predictions(model, batch)
        return logits.unsqueeze(1), labels.view(-1, 1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        size = batch_size(batch)
        labels = batch.get("labels")
        return torch.ones(size, dtype=torch.int64) if labels is None else (labels != IGNORED).reshape(size, -1).any(1)


class MarginObjective(Objective):
    """Minus the log-odds log(p / (1 - p)) of the right class, summed over an example's targets.

    An example counts for 1 - p of its right class (the mean over its targets), the derivative of its loss by the
    margin.

    Source: TRAK (Park et al. 2023, arXiv:2303.14186), which has one target an example; the sum over tokens is ours.
    """

    def __init__(self, base: Objective):
        super().__init__(self._margin)
        self.base = base
        self.name, self.needs_labels = base.name, base.needs_labels

    def _margin(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.base.predictions(model, batch)
        counts = labels != IGNORED
        right = F.one_hot(labels.clamp_min(0), logits.shape[-1]).bool()
        chosen = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        margins = (chosen - logits.masked_fill(right, -torch.inf).logsumexp(dim=-1)) * counts
        doubt = (torch.sigmoid(-margins.detach()) * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)
        self.weights = doubt.to("cpu", torch.float32)
        return -margins.sum(dim=1)

    def targets(self, batch: dict[str, Any]) -> Tensor | None:
        return self.base.targets(batch)


def find_objective(model: nn.Module, objective: UserObjective | None = None) -> Objective:
    """The objective that fits the model's class, or the user's own wrapped.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: the model is of no known task and no objective was given.
    """
    if objective is not None:
        return objective if isinstance(objective, Objective) else Objective(objective)
    task = _task(model)
    if task == "causal-lm":
        return CausalLMObjective()
    if task == "sequence-classification":
        return SequenceClassificationObjective()
    raise ObjectiveError(
        f"No training objective is known for {type(base_model(model)).__name__}: known are causal language models and "
        "sequence classifiers. Pass objective=, a function (model, batch) -> (B,) tensor of per-example losses."
    )


def auto_class(model: nn.Module) -> str | None:
    """Name of the transformers Auto class that loads such a model, kept in the manifest."""
    task = _task(model)
    return _TASKS[task][0] if task else None


def _task(model: nn.Module) -> str | None:
    name = type(base_model(model)).__name__
    return next((task for task, (_, mapping) in _TASKS.items() if name in mapping.values()), None)


def forward_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model's forward takes, without the labels (the loss is ours)."""
    parameters = inspect.signature(base_model(model).forward).parameters
    return {key: value for key, value in batch.items() if key in parameters and key not in ("labels", "use_cache")}


def batch_size(batch: Mapping[str, Any]) -> int:
    """B: the length of the first tensor in the batch."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.dim():
            return len(cast(Tensor, value))
    raise ObjectiveError(f"The batch holds no tensor: its entries are {', '.join(map(str, batch)) or 'none'}.")
