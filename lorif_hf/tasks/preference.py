"""The losses of a TRL Trainer row by row, of one pass over all of them.

A Trainer's `compute_loss` is the mean over the rows of a batch. The model goes over the whole batch once; then the
Trainer is asked for the loss of each row alone, with that row's part of what the model said in the model's place.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ObjectiveError
from .trainer_state import flags_kept, notes_kept


def is_trainer(trainer: Any, name: str) -> bool:
    """Whether a Trainer is TRL's of this name, or a subclass that leaves its loss alone."""
    kinds = [kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind)]
    return bool(kinds) and kinds[0].__name__ == name and kinds[0].__module__.partition(".")[0] == "trl"


def losses_of_rows(trainer: Any, model: nn.Module, batch: Mapping[str, Any], sequences: int) -> Tensor:
    """(B,) losses of a batch, each what the Trainer's `compute_loss` gives of its row alone.

    Args:
        trainer: of TRL; its notes and settings are left as they were.
        model (`nn.Module`): the unwrapped model.
        batch (`Mapping`): what the Trainer's collator made of B rows: `sequences` blocks of B rows each, and what
            there is once for each row.
        sequences (`int`): how many rows of the batch belong to each.
    """
    total = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())
    count = total // sequences
    # The sequences of a row side by side, as they are told apart in the model.
    order = torch.arange(total).view(sequences, count).T.flatten()
    with notes_kept(trainer):
        whole, once = _Whole(model, order), dict(batch)
        with _reference_known(trainer, once):
            trainer.compute_loss(whole, dict(once))
            losses = []
            for row in range(count):
                part = _Part(whole.said, slice(row * sequences, (row + 1) * sequences), total)
                own = {key: _of_row(value, row, count, total) for key, value in once.items()}
                loss = trainer.compute_loss(part, own)
                losses.append(_scalar(loss))
    return torch.stack(losses).float()


class _Whole:
    """The model, over whole batches, with the sequences of each row side by side; keeps what it says.

    Args:
        model (`nn.Module`): the model.
        order (`Tensor`): (total,) the rows of a batch in the order in which the model sees them.
    """

    def __init__(self, model: nn.Module, order: Tensor):
        self.model, self.order = model, order
        self.said: list[Any] = []

    def __call__(self, **inputs: Any) -> Any:
        total = len(self.order)
        sorted_inputs = {k: v[self.order.to(v.device)] if _has(v, total) else v for k, v in inputs.items()}
        outputs = self.model(**sorted_inputs)
        self.said.append(outputs)
        back = self.order.argsort()
        return _taken(outputs, lambda tensor: tensor[back.to(tensor.device)], total)


class _Part:
    """What the model said of one row, in the model's place.

    Args:
        said (`list`): the outputs of each call.
        rows (`slice`): the row's sequences in them.
        total (`int`): sequences in each.
    """

    def __init__(self, said: list[Any], rows: slice, total: int):
        self.said, self.rows, self.total = iter(said), rows, total

    def __call__(self, **_: Any) -> Any:
        return _taken(next(self.said), lambda tensor: tensor[self.rows], self.total)


def _taken(outputs: Any, take: Callable[[Tensor], Tensor], total: int) -> Any:
    """A model's outputs with a part of each tensor that has an entry for every sequence."""
    items = {**vars(outputs), **(outputs if isinstance(outputs, Mapping) else {})}
    return SimpleNamespace(**{key: take(value) if _has(value, total) else value for key, value in items.items()})


def _has(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _of_row(value: Any, row: int, count: int, total: int) -> Any:
    """A row's part of an entry of the batch: its sequences, or its own number."""
    if _has(value, total):
        return value[row::count]
    return value[row : row + 1] if _has(value, count) else value


def _scalar(loss: Any) -> Tensor:
    loss = loss[0] if isinstance(loss, tuple) else loss
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ObjectiveError(f"The Trainer's compute_loss returned {type(loss).__name__}, no loss.")
    return cast(Tensor, loss).reshape(())


@contextmanager
def _reference_known(trainer: Any, batch: dict[str, Any]) -> Iterator[None]:
    """The log-probabilities of the reference, once for the whole batch; put into it as training may have put them."""
    if not hasattr(trainer, "compute_ref_log_probs") or trainer.precompute_ref_logps:
        yield
        return
    reference = trainer.model if trainer.ref_model is None else trainer.ref_model
    with flags_kept(trainer.model):  # before the model's own pass: a weight with a flag would get a gradient there
        first, second = trainer.compute_ref_log_probs(reference, batch)
    names = ("ref_logps", "ref_KL_logps") if "label" in batch else ("ref_chosen_logps", "ref_rejected_logps")
    batch |= {name: value for name, value in zip(names, (first, second), strict=True) if value is not None}
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = False
