"""What a Trainer and its model are left with."""

import pytest
import torch

from lorif_hf.tasks.trainer_state import flags_kept, notes_kept


class Trainer:
    def __init__(self):
        self._metrics, self.total, self.model = {"train": {"loss": [1.0]}}, 3, torch.nn.Linear(2, 2)
        self.logged = []

    def log(self, logs):
        self.logged.append(logs)

    def compute_loss(self):
        self._metrics["train"]["loss"].append(2.0)
        self.total += 1
        self.log({"loss": 2.0})


def test_counts_and_metrics_are_as_they_were_also_after_an_error():
    trainer = Trainer()
    model = trainer.model
    with notes_kept(trainer):
        trainer.compute_loss()
        assert trainer.total == 4 and trainer.logged == []
    assert trainer._metrics == {"train": {"loss": [1.0]}} and trainer.total == 3 and trainer.model is model
    with pytest.raises(ValueError, match="no loss"), notes_kept(trainer):
        trainer.compute_loss()
        raise ValueError("no loss")
    assert trainer.total == 3
    trainer.compute_loss()
    assert trainer.logged == [{"loss": 2.0}]


def test_a_log_of_the_users_own_is_put_back():
    trainer = Trainer()
    own = trainer.log = lambda logs: None
    with notes_kept(trainer):
        assert trainer.log is not own
    assert trainer.log is own


def test_flags_are_as_they_were_also_after_an_error():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="no loss"), flags_kept(model):
        model.requires_grad_(True)
        model[1].requires_grad_(False)
        raise ValueError("no loss")
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_the_batch_is_a_step_of_its_own_whatever_a_step_of_the_training_is():
    """TRL's SFTTrainer divides the loss of a mixture's routers by it, and it is not known before the first step."""
    trainer = Trainer()
    with notes_kept(trainer):
        assert trainer.current_gradient_accumulation_steps == 1
    assert not hasattr(trainer, "current_gradient_accumulation_steps")
    trainer.current_gradient_accumulation_steps = 4
    with notes_kept(trainer):
        assert trainer.current_gradient_accumulation_steps == 1
    assert trainer.current_gradient_accumulation_steps == 4
