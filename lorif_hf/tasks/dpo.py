"""Direct preference optimisation by TRL's `DPOTrainer`."""

from typing import Any

import torch
from torch import Tensor

from ..errors import ObjectiveError
from .completions import Completions


class DPO(Completions):
    """The Trainer's loss of each pair of completions, several pairs at once.

    A query is a prompt with one completion, measured as a causal language model's.

    Args:
        trainer (*optional*): TRL's `DPOTrainer`, for the rows; queries need none.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: its loss sorts the pairs of a batch against each other.
    """

    name = "dpo"
    decoded = ("prompt_ids", "chosen_ids", "rejected_ids")
    sides = ("prompt_ids", "chosen_ids", "rejected_ids")
    sequences = 2

    def __init__(self, trainer: Any = None):
        super().__init__(trainer)
        if trainer is None:
            self.sequences = 1  # type: ignore[misc]  # of queries
        sorting = {"aot", "aot_unpaired"} & set(getattr(trainer, "loss_types", ()))
        if sorting:
            raise ObjectiveError(
                f"DPO with loss_type '{min(sorting)}' sorts the pairs of a batch against each other: a pair alone has "
                "no such loss, and it cannot be attributed to single rows. Pass objective=, a function (model, batch) "
                "-> (B,), where some loss of each pair says what you ask for."
            )

    def targets(self, batch: dict[str, Any]) -> Tensor:
        mask = batch.get("completion_mask")
        if not isinstance(mask, Tensor):
            return self._queries.targets(batch)
        return torch.stack(mask[:, 1:].sum(dim=1).chunk(2)).sum(dim=0)
