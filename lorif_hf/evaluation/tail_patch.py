"""The tail-patch score: does one more step on a query's proponents make the model say it more?

Source: Chang et al. 2024, "Scalable Influence and Fact Tracing for Large Language Model Pretraining",
arXiv:2410.17413. Unlike other scores it needs no ground truth and no retraining.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import EvaluationError
from ..layers.modules import unwrap
from ..tasks import Task, UserObjective, task_of
from ..tasks.base import forward_inputs, losses_of
from ..tasks.collation import padding_collator
from ..tasks.query_forms import query_features
from .arrays import finite_array
from .bootstrap import Interval, check_bootstrap, mean_interval


@dataclass(frozen=True, eq=False)
class TailPatchResult:
    """Change of the queries' log-probabilities, nats. Positive is good: the proponents make the query more likely.

    Args:
        mean (`float`): mean of `per_query`.
        per_query (`np.ndarray`): (Q,) after minus before.
        interval (`tuple[float, float]`): bootstrap interval of the mean over queries; NaN for a single query.
        before (`np.ndarray`): (Q,) log-probabilities under the weights as they are.
        after (`np.ndarray`): (Q,) log-probabilities after the step.

    Example:

    ```python
    >>> result = tail_patch(model, queries, batches, learning_rate=1e-3)
    >>> result.mean, result.interval
    (0.12, (0.08, 0.16))
    ```
    """

    mean: float
    per_query: np.ndarray
    interval: Interval
    before: np.ndarray
    after: np.ndarray


def tail_patch(
    model: nn.Module,
    queries: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    learning_rate: float,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    processing_class: Any = None,
    objective: UserObjective | Task | str | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> TailPatchResult:
    """Change of each query's log-probability after one optimizer step on the rows that are held to be behind it.

    Every query starts from the weights as they are, and they are restored bit for bit afterwards, also after an error.
    The step lowers the mean, over the rows of the query's batch, of the per-example objective that an index is built
    with (summed over an example's tokens). Dropout is off. The device must hold the trained parameters twice more: a
    copy, and gradients. To first order the change is the learning rate times the mean, over the rows, of the product
    of the row's and the query's gradients.

    Args:
        model (`nn.Module`): the model that was indexed. The parameters that require a gradient take the step.
        queries: as in [`InfluenceIndex.attribute`].
        batches (`Iterable[Mapping]`): one batch per query: its top-k training rows, as [`proponent_batches`] makes
            them.
        learning_rate (`float`): of the one step; that of the end of the training is a fair choice.
        optimizer (`Callable`, *optional*, defaults to `torch.optim.SGD`): `(parameters, lr=...)` -> a fresh optimizer.
        processing_class (*optional*): tokenizer for text queries.
        objective (`Callable`, *optional*): `(model, batch) -> (B,)` losses; by default that of the model's task. The
            log-probability is minus this loss: for a language model the sum over the query's tokens.
        confidence, resamples, seed (*optional*): of the bootstrap interval.

    Returns:
        [`TailPatchResult`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: another number of batches than queries, no parameter to train, a
            learning rate that is not positive, a step after which the loss is not finite (the query is named).
        [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ObjectiveError`]: as in [`InfluenceIndex.attribute`].

    Example:

    ```python
    >>> proponents = index.attribute(model, queries, top_k=16).indices
    >>> batches = proponent_batches(model, dataset, proponents)
    >>> tail_patch(model, queries, batches, learning_rate=1e-3).mean
    0.12
    ```
    """
    check_bootstrap(confidence, resamples)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise EvaluationError(f"learning_rate must be above 0, found {learning_rate!r}.")
    model = unwrap(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise EvaluationError("No parameter of the model requires a gradient, so no step can be taken: unfreeze some.")
    task = task_of(model, objective)
    features = query_features(queries, model, task, processing_class)
    collator = padding_collator(model, processing_class, task.makes_labels)
    before, after = [], []
    for number, (feature, batch) in enumerate(zip_longest(features, batches)):
        if feature is None or batch is None:
            count = "more" if feature is None else number
            raise EvaluationError(f"Each query needs its batch: expected {len(features)} of them, found {count}.")
        # Alone, and before and after in the same batch: padding must not show up as a change.
        query = _on_device(model, collator([feature]))
        with _restored(model, trained):
            query = _with_target(model, task, query)
            before.append(_log_probability(model, task, query))
            with torch.enable_grad():
                stepper = optimizer(trained, lr=learning_rate)
                losses_of(task, model, _on_device(model, batch)).mean().backward()
                stepper.step()
            after.append(_log_probability(model, task, query))
        if not (math.isfinite(before[-1]) and math.isfinite(after[-1])):
            raise EvaluationError(
                f"The log-probability of query {number} must be finite, found {before[-1]} before and {after[-1]} "
                f"after the step: lower the learning rate (found {learning_rate}), or check the rows."
            )
    return tail_patch_of(before, after, confidence=confidence, resamples=resamples, seed=seed)


def tail_patch_of(
    before: Any, after: Any, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> TailPatchResult:
    """The tail-patch score of given log-probabilities.

    Args:
        before, after (array or `Tensor`): (Q,) log-probabilities, nats.
        confidence, resamples, seed (*optional*): of the bootstrap interval over queries.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: lengths that differ, NaN or infinity (the query is named).

    Example:

    ```python
    >>> tail_patch_of(before=[2.0, 3.0], after=[1.5, 2.0]).mean
    0.75
    ```
    """
    check_bootstrap(confidence, resamples)
    first = finite_array(before, "before", ("query",)).astype(np.float64)
    second = finite_array(after, "after", ("query",)).astype(np.float64)
    if len(first) != len(second):
        raise EvaluationError(f"after must have one value per query: expected {len(first)}, found {len(second)}.")
    change = second - first
    interval = mean_interval(change, confidence=confidence, resamples=resamples, seed=seed)
    return TailPatchResult(float(change.mean()), change, interval, first, second)


def proponent_batches(
    model: nn.Module,
    dataset: Any,
    indices: Any,
    *,
    data_collator: Callable[[list[Any]], Any] | None = None,
    processing_class: Any = None,
    objective: UserObjective | Task | str | None = None,
) -> Iterator[dict[str, Any]]:
    """The top-k rows of each query as a batch, one after the other.

    Args:
        model (`nn.Module`): decides how rows are padded.
        dataset: the training set as it was indexed: row i is row i of the index.
        indices (array or `Tensor`): (Q, k) row numbers, as in [`Attribution.indices`].
        data_collator (`Callable`, *optional*): the one of the training; by default pads on the right, labels with
            -100.
        processing_class, objective (*optional*): as in [`tail_patch`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: a row that the dataset does not have.

    Example:

    ```python
    >>> batches = proponent_batches(model, dataset, index.attribute(model, queries, top_k=16).indices)
    ```
    """
    rows = finite_array(indices, "indices", ("query", "row"))
    if rows.dtype.kind not in "iu":
        raise EvaluationError(f"indices must be row numbers, found {rows.dtype}.")
    outside = rows[(rows < 0) | (rows >= len(dataset))]
    if len(outside):
        raise EvaluationError(f"indices name row {outside[0]}, the dataset has {len(dataset)}: pass the one indexed.")
    makes_labels = task_of(unwrap(model), objective).makes_labels
    collate = data_collator or padding_collator(model, processing_class, makes_labels)
    return (dict(collate([dataset[row] for row in of_query])) for of_query in rows.tolist())


def _on_device(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch on the model's device."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _with_target(model: nn.Module, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
    """Holds a classifier to the prediction it made before the step, where the query names no label."""
    if "labels" in batch or not task.needs_labels:
        return batch
    with torch.no_grad():
        losses_of(task, model, batch)  # its errors: a regression, say, has no prediction to be held to
        return {**batch, "labels": model(**forward_inputs(model, batch)).logits.argmax(dim=-1)}


def _log_probability(model: nn.Module, task: Task, batch: dict[str, Any]) -> float:
    """Minus the losses, summed over the batch; nats."""
    with torch.no_grad():
        return -float(losses_of(task, model, batch).double().sum())


@contextmanager
def _restored(model: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode and gradients of nothing inside; afterwards weights, buffers, gradients and modes as before."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    saved = [(tensor, tensor.detach().clone()) for tensor in (*trained, *model.buffers())]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
