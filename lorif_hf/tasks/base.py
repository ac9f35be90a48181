"""What every kind of task says of a model's examples and queries, and how tasks are registered.

The loss of an example is a sum over its own targets, in nats: an example's gradient must not depend on its batch.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..errors import ObjectiveError
from ..layers.modules import base_model
from ..registry import TASKS
from .segments import SEGMENTS
from .text import TextReader


Feature = dict[str, Any]
"""One example or query as the model takes it: its inputs by name, without the batch's axis."""

UserObjective = Callable[[nn.Module, dict[str, Any]], Tensor]
"""`(model, batch) -> (B,)` losses in nats, with a graph."""


class Task(ABC):
    """A kind of task: the loss of one example, what of it is a target, and how a query of it is written.

    A kind implements every abstract method and overrides no other.

    Attributes:
        name (`str`): what an index calls its objective.
        auto_class (`str` or `None`): transformers' Auto class that loads such a model, where there is one.
        needs_labels (`bool`): whether a batch of training rows must hold `labels`.
        makes_labels (`bool`): whether a row without labels is measured on its own tokens.
        labelled_queries (`bool`): whether a query {"text": ..., "label": ...} is a pair of both.
        query_example (`str`): a query as Python code, for the index's card.
        alone (`bool`): whether rows go through the model one at a time, since its loss is known of a batch only; a
            batch is then what the collator makes of a single row.
        label_names (`tuple[str, ...]`): what a batch of training rows must hold where `needs_labels`.
        label_kind (`str` or `None`): what the labels are, so that they can be checked before the model sees them:
            "tokens" of its vocabulary, "classes" (its `num_labels`), or `None`: nothing is known of them.
        labels_each_token (`bool`): whether each token of `input_ids` has its label.
        decoded (`tuple[str, ...]`): columns of tokens that a row without a text is shown by.
        sides (`tuple[str, ...]`): columns that must hold something in every row, as both answers of a preference.
        padding_counts (`bool`): whether padding changes an example's loss, so that only examples of the same length
            go through the model together.
        token_axes (`int`): axes of an example's `input_ids`: 1, or 2 where it has several sequences.
        pair_columns (`tuple[tuple[str, str], ...]`): what datasets call the two halves of a query pair, beside what
            they are called everywhere.
        caveat (`str` or `None`): what is told of the losses when rows are recorded by them.
        sequences (`int`): how many rows of a batch belong to each example, one after the other.

    Example: (`docs/extending.md` writes all of one)

    ```python
    >>> @lorif_hf.tasks.register
    ... class Mine(Task):
    ...     name = "squared-error"
    ```
    """

    name: ClassVar[str]
    auto_class: ClassVar[str | None]
    needs_labels: ClassVar[bool]
    makes_labels: ClassVar[bool]
    labelled_queries: ClassVar[bool]
    query_example: ClassVar[str]
    alone: ClassVar[bool] = False
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    label_kind: ClassVar[str | None] = None
    labels_each_token: ClassVar[bool] = False
    decoded: ClassVar[tuple[str, ...]] = ("input_ids",)
    sides: ClassVar[tuple[str, ...]] = ()
    padding_counts: ClassVar[bool] = False
    token_axes: ClassVar[int] = 1
    pair_columns: ClassVar[tuple[tuple[str, str], ...]] = ()
    caveat: ClassVar[str | None] = None
    sequences: ClassVar[int] = 1

    @abstractmethod
    def accepts(self, model: nn.Module) -> bool:
        """Whether a model (the transformers model itself, out of any PEFT wrapper) is trained for this task."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(B,) losses in nats, each summed over its example's targets, with a graph."""

    @abstractmethod
    def targets(self, batch: dict[str, Any]) -> Tensor | None:
        """(B,) number of targets each example is measured on, or `None` where the task does not tell."""

    @abstractmethod
    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (B, T, classes) and labels (B, T), -100 where nothing is predicted, for margins.

        Raises:
            [`~lorif_hf.errors.ObjectiveError`]: there are no classes with a right one: see [`no_margin`].
        """

    @abstractmethod
    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """What a query that is a pair of a text and something else means; `number` is for errors.

        Raises:
            [`~lorif_hf.errors.QueryError`]: it means nothing.
        """

    @abstractmethod
    def check_query(self, feature: Feature, number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where a query has nothing to measure."""


def known_task(model: nn.Module) -> Task | None:
    """The task that accepts a model, the last registered first; `None`: no task does."""
    base = base_model(model)
    return next((task for task in TASKS if task.accepts(base)), None)


def auto_class(model: nn.Module) -> str | None:
    """Name of the transformers Auto class that loads such a model, kept in the manifest."""
    task = known_task(model)
    return task.auto_class if task else None


def losses_of(task: Task, model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The task's losses of a batch, (B,).

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: they are not one number per example.
    """
    losses = task.losses(model, batch)
    size = 1 if task.alone else batch_size(batch) // task.sequences
    if not isinstance(losses, Tensor) or losses.shape != (size,):
        returned = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ObjectiveError(
            f"Objective '{task.name}' must return one loss per example, shape ({size},), got {returned}. Sum over an "
            "example's tokens, never over the batch."
        )
    return losses


def no_margin(name: str) -> ObjectiveError:
    """The error of a task, or a problem, without right classes."""
    return ObjectiveError(
        f"Objective '{name}' has no margin: output='margin' is for causal language models and classifiers with one "
        "right class. Use output='loss'."
    )


_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What collators tell kernels of the documents in a sequence: models take it among their `**kwargs`."""


def forward_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the model's forward takes, without the labels (the loss is ours)."""
    parameters = inspect.signature(base_model(model).forward).parameters
    packed = _PACKED if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()) else ()
    taken = (parameters.keys() | packed) - {"labels", "use_cache"}
    return {key: value for key, value in batch.items() if key in taken}


def batch_size(batch: Mapping[str, Any]) -> int:
    """B: the number of its [`Segments`], else the length of the first tensor in the batch."""
    if SEGMENTS in batch:
        return len(batch[SEGMENTS])
    for value in batch.values():
        if isinstance(value, Tensor) and value.dim():
            return len(cast(Tensor, value))
    raise ObjectiveError(f"The batch holds no tensor: its entries are {', '.join(map(str, batch)) or 'none'}.")
