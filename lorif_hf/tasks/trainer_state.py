"""What a Trainer and its model are left with when only a row was looked at: nothing new."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


_PLAIN = (int, float, str, bool, type(None))
_LONGEST = 1000
_DEEPEST = 3
_STEPS = "current_gradient_accumulation_steps"  # absent before the first step; TRL's loss of routers divides by it


@contextmanager
def notes_kept(trainer: Any) -> Iterator[None]:
    """Leave the counts and metrics that a Trainer gathers in `compute_loss` as they were, and log nothing.

    Meanwhile the Trainer takes the batch for a step of its own, whatever its steps are made of in the training.
    """
    notes = {name: copy.deepcopy(value) for name, value in vars(trainer).items() if _is_note(value)}
    log = vars(trainer).get("log")
    setattr(trainer, _STEPS, 1)
    trainer.log = lambda *_, **__: None  # a row that is only looked at is no step
    try:
        yield
    finally:
        del trainer.log
        delattr(trainer, _STEPS)
        vars(trainer).update(notes)
        if log is not None:
            trainer.log = log


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Leave `requires_grad` as it was: who switches PEFT's adapters off and on again has set it anew."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def _is_note(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether a value is a number, a text, or holds nothing else."""
    if isinstance(value, _PLAIN):
        return True
    if not isinstance(value, (dict, list, set)) or depth == 0:
        return False
    inside = value.values() if isinstance(value, dict) else value
    return len(inside) <= _LONGEST and all(_is_note(item, depth - 1) for item in inside)
