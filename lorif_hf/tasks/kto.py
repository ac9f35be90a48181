"""Kahneman-Tversky optimisation by TRL's `KTOTrainer`."""

from typing import Any

from torch import Tensor, nn

from .base import Feature, Task, no_margin
from .causal_lm import CausalLM
from .preference import losses_of_rows
from .text import TextReader


class KTO(Task):
    """The Trainer's loss of each completion, several at once.

    The Trainer compares each row with a Kullback-Leibler divergence that it estimates from the whole batch and does
    not differentiate. A row alone has its own estimate, from its own mismatched completion: that is what is recorded.
    It changes how much a row weighs, not where its gradient points. `loss_type="apo_zero_unpaired"` has no such term.

    A query is a prompt with one completion, measured as a causal language model's.

    Args:
        trainer (*optional*): TRL's `KTOTrainer`, for the rows; queries need none.
    """

    name = "kto"
    auto_class = "AutoModelForCausalLM"
    needs_labels = False
    makes_labels = True
    labelled_queries = False
    query_example = '("The capital of France is", " Paris")'
    label_kind = "tokens"
    decoded = ("prompt_ids", "completion_ids")
    sides = ("prompt_ids", "completion_ids", "label")

    def __init__(self, trainer: Any = None):
        self.trainer = trainer
        self._queries = CausalLM()
        if getattr(trainer, "calculate_KL", False):
            self.caveat = (  # type: ignore[misc]
                "KTO's loss of a row has a term of its whole batch (the estimate of the KL divergence): each row is "
                "recorded with its own estimate, as the Trainer has it of that row alone."
            )

    def accepts(self, model: nn.Module) -> bool:
        return False  # the Trainer says so, not the model

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        if self.trainer is None:
            return self._queries.losses(model, batch)
        return losses_of_rows(self.trainer, model, batch, self.sequences)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        mask = batch.get("completion_mask")
        return self._queries.targets(batch) if not isinstance(mask, Tensor) else mask[:, 1:].sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        return self._queries.query_pair(reader, text, target, number)

    def check_query(self, feature: Feature, number: int) -> None:
        self._queries.check_query(feature, number)
