"""Kahneman-Tversky optimisation by TRL's `KTOTrainer`."""

from typing import Any

from torch import Tensor

from .completions import Completions


class KTO(Completions):
    """The Trainer's loss of each completion, several at once.

    The Trainer compares each row with a Kullback-Leibler divergence that it estimates from the whole batch and does
    not differentiate. A row alone has its own estimate, from its own mismatched completion: that is what is recorded.
    It changes how much a row weighs, not where its gradient points. `loss_type="apo_zero_unpaired"` has no such term.

    A query is a prompt with one completion, measured as a causal language model's.

    Args:
        trainer (*optional*): TRL's `KTOTrainer`, for the rows; queries need none.
    """

    name = "kto"
    decoded = ("prompt_ids", "completion_ids")
    sides = ("prompt_ids", "completion_ids", "label")

    def __init__(self, trainer: Any = None):
        super().__init__(trainer)
        if getattr(trainer, "calculate_KL", False):
            self.caveat = (  # type: ignore[misc]
                "KTO's loss of a row has a term of its whole batch (the estimate of the KL divergence): each row is "
                "recorded with its own estimate, as the Trainer has it of that row alone."
            )

    def targets(self, batch: dict[str, Any]) -> Tensor:
        mask = batch.get("completion_mask")
        return self._queries.targets(batch) if not isinstance(mask, Tensor) else mask[:, 1:].sum(dim=1)
