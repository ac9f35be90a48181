"""Kinds of task: the loss of one example, what of it is a target, how a query of it is written. One file a kind."""

from ..registry import TASKS
from .base import Feature, Task, UserObjective, batch_size, forward_inputs, no_margin
from .causal_lm import CausalLM
from .custom import Custom
from .objectives import task_of
from .sequence_classification import SequenceClassification
from .text import TextReader


register = TASKS.register
for _kind in (CausalLM, SequenceClassification):
    register(_kind)

__all__ = [
    "CausalLM",
    "Custom",
    "Feature",
    "SequenceClassification",
    "Task",
    "TextReader",
    "UserObjective",
    "batch_size",
    "forward_inputs",
    "no_margin",
    "register",
    "task_of",
]
