"""Which kind of preference a Trainer trains on."""

from typing import Any

from .base import Task
from .dpo import DPO
from .kto import KTO
from .preference import is_trainer
from .reward import Reward


_TRAINERS = (("DPOTrainer", DPO), ("KTOTrainer", KTO), ("RewardTrainer", Reward))


def preference_task(trainer: Any) -> Task | None:
    """The task of a Trainer of TRL whose loss is of preferences; `None`: it is none of those.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: its loss is of whole batches.
    """
    return next((task(trainer) for name, task in _TRAINERS if is_trainer(trainer, name)), None)
