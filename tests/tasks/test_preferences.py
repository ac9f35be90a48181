"""Which kind of preference a Trainer trains on."""

import pytest
from preferences import dpo, kto, reward, words
from trainings import plain

from lorif_hf.tasks import DPO, KTO, Reward
from lorif_hf.tasks.preferences import preference_task


@pytest.mark.parametrize("make, kind", [(dpo, DPO), (kto, KTO), (reward, Reward)])
def test_the_kind_of_a_trainer(tmp_path, make, kind):
    trainer = make(tmp_path, **({"reference": True} if make is dpo else {}))
    task = preference_task(trainer)
    assert type(task) is kind and task.trainer is trainer and not task.accepts(trainer.model)


def test_other_trainers_and_none_are_of_no_kind(tmp_path):
    assert preference_task(plain(tmp_path, words())) is None and preference_task(None) is None
