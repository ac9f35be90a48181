"""Direct preference optimisation by TRL's `DPOTrainer`."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ObjectiveError
from .base import Feature, Task, no_margin
from .causal_lm import CausalLM
from .preference import losses_of_rows
from .text import TextReader


class DPO(Task):
    """The Trainer's loss of each pair of completions, several pairs at once.

    A query is a prompt with one completion, measured as a causal language model's.

    Args:
        trainer (*optional*): TRL's `DPOTrainer`, for the rows; queries need none.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: its loss sorts the pairs of a batch against each other.
    """

    name = "dpo"
    auto_class = "AutoModelForCausalLM"
    needs_labels = False
    makes_labels = True
    labelled_queries = False
    query_example = '("The capital of France is", " Paris")'
    label_kind = "tokens"
    decoded = ("prompt_ids", "chosen_ids", "rejected_ids")
    sides = ("prompt_ids", "chosen_ids", "rejected_ids")
    sequences = 2

    def __init__(self, trainer: Any = None):
        self.trainer = trainer
        self._queries = CausalLM()
        if trainer is None:
            self.sequences = 1  # type: ignore[misc]  # of queries
        sorting = {"aot", "aot_unpaired"} & set(getattr(trainer, "loss_types", ()))
        if sorting:
            raise ObjectiveError(
                f"DPO with loss_type '{min(sorting)}' sorts the pairs of a batch against each other: a pair alone has "
                "no such loss, and it cannot be attributed to single rows. Pass objective=, a function (model, batch) "
                "-> (B,), where some loss of each pair says what you ask for."
            )

    def accepts(self, model: nn.Module) -> bool:
        return False  # the Trainer says so, not the model

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        if self.trainer is None:
            return self._queries.losses(model, batch)
        return losses_of_rows(self.trainer, model, batch, self.sequences)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        mask = batch.get("completion_mask")
        if not isinstance(mask, Tensor):
            return self._queries.targets(batch)
        return torch.stack(mask[:, 1:].sum(dim=1).chunk(2)).sum(dim=0)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        return self._queries.query_pair(reader, text, target, number)

    def check_query(self, feature: Feature, number: int) -> None:
        self._queries.check_query(feature, number)
