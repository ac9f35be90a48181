"""What preferences over a language model's completions have in common: rows by the Trainer, queries by the model."""

from typing import Any

from torch import Tensor, nn

from .base import Feature, Task, no_margin
from .causal_lm import CausalLM
from .preference import losses_of_rows
from .text import TextReader


class Completions(Task):
    """The Trainer's loss of each row, several rows at once. A kind says what a row's columns and targets are.

    A query is a prompt with one completion, measured as a causal language model's.

    Args:
        trainer (*optional*): of TRL, for the rows; queries need none.
    """

    auto_class = "AutoModelForCausalLM"
    needs_labels = False
    makes_labels = True
    labelled_queries = False
    query_example = '("The capital of France is", " Paris")'
    label_kind = "tokens"

    def __init__(self, trainer: Any = None):
        self.trainer = trainer
        self._queries = CausalLM()

    def accepts(self, model: nn.Module) -> bool:
        return False  # the Trainer says so, not the model

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        if self.trainer is None:
            return self._queries.losses(model, batch)
        return losses_of_rows(self.trainer, model, batch, self.sequences)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        return self._queries.query_pair(reader, text, target, number)

    def check_query(self, feature: Feature, number: int) -> None:
        self._queries.check_query(feature, number)
