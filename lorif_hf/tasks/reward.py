"""Reward models, trained on pairs by TRL's `RewardTrainer`."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task, batch_size, forward_inputs, no_margin
from .preference import losses_of_rows
from .text import TextReader


class Reward(Task):
    """The Trainer's loss of each pair of answers, several pairs at once.

    A query is one text, and its loss is minus its reward: a proponent raises the reward.

    Args:
        trainer (*optional*): TRL's `RewardTrainer`, for the rows; queries need none.
    """

    name = "reward"
    auto_class = "AutoModelForSequenceClassification"
    needs_labels = False
    makes_labels = False
    labelled_queries = True
    query_example = '"The capital of France is Paris"'
    decoded = ("chosen_ids", "rejected_ids")
    sides = ("chosen_ids", "rejected_ids")
    sequences = 2

    def __init__(self, trainer: Any = None):
        self.trainer = trainer
        if trainer is None:
            self.sequences = 1  # type: ignore[misc]  # of queries

    def accepts(self, model: nn.Module) -> bool:
        return False  # the Trainer says so, not the model

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        if self.trainer is None:
            rewards: Tensor = model(**forward_inputs(model, batch)).logits
            return -rewards.float().reshape(batch_size(batch), -1).sum(dim=1)
        return losses_of_rows(self.trainer, model, batch, self.sequences)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return torch.ones(batch_size(batch) // self.sequences, dtype=torch.int64)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise QueryError(
            f"Query {number} is a pair, and a reward model rates one text: pass the whole text, prompt and answer "
            "together."
        )

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # every text has a reward
