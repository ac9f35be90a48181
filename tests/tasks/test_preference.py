"""A Trainer's loss row by row, of one pass over the batch."""

import pytest
import torch
from preferences import adapter, dpo, kto, losses_alone, reward, whole_batch

from lorif_hf.errors import ObjectiveError
from lorif_hf.tasks.preference import is_trainer, losses_of_rows


TRAININGS = {
    "reference model": (dpo, 2, {"reference": True}),
    "adapter off": (dpo, 2, {"peft_config": adapter()}),
    "precomputed": (dpo, 2, {"peft_config": adapter(), "precompute_ref_log_probs": True}),
    "two losses": (dpo, 2, {"reference": True, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    "weighted": (dpo, 2, {"reference": True, "use_weighting": True, "ld_alpha": 0.5}),
    "reward": (reward, 2, {}),
    "reward, centred": (reward, 2, {"center_rewards_coefficient": 0.1}),
    "kto": (kto, 1, {}),
    "kto, adapter off": (kto, 1, {"peft_config": adapter(), "loss_type": "apo_zero_unpaired"}),
}


@pytest.mark.parametrize("make, sequences, options", TRAININGS.values(), ids=TRAININGS)
def test_losses_are_those_of_each_row_alone(tmp_path, make, sequences, options):
    trainer = make(tmp_path, **options)
    expected, batch = losses_alone(trainer), whole_batch(trainer)
    trainer.model.requires_grad_(False)
    notes, precomputed = str(trainer._metrics), getattr(trainer, "precompute_ref_logps", None)
    passes = []
    trainer.model.register_forward_hook(lambda *_: passes.append(1))
    losses = losses_of_rows(trainer, trainer.model, batch, sequences)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert losses.shape == (10,) and len(passes) <= 2 * 2  # the whole batch, and by the reference; each twice for KTO
    assert str(trainer._metrics) == notes and getattr(trainer, "precompute_ref_logps", None) == precomputed
    assert not any(parameter.requires_grad for parameter in trainer.model.parameters())


def test_the_graph_is_that_of_all_rows(tmp_path):
    trainer = dpo(tmp_path, reference=True)
    batch, weight = whole_batch(trainer), trainer.model.model.layers[0].mlp.up_proj.weight
    trainer.model.eval()
    (found,) = torch.autograd.grad(losses_of_rows(trainer, trainer.model, batch, 2).mean(), weight)
    (expected,) = torch.autograd.grad(trainer.compute_loss(trainer.model, dict(batch)), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_none(tmp_path):
    trainer = dpo(tmp_path, reference=True)
    trainer.compute_loss = lambda model, inputs: (
        model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits
    )
    with pytest.raises(ObjectiveError, match="compute_loss returned Tensor, no loss"):
        losses_of_rows(trainer, trainer.model, whole_batch(trainer), 2)


def test_whose_loss_is_trls(tmp_path):
    trainer = reward(tmp_path)
    assert is_trainer(trainer, "RewardTrainer") and not is_trainer(trainer, "DPOTrainer")

    class Quiet(type(trainer)):
        def log(self, *_, **__):
            pass

    class Own(type(trainer)):
        def compute_loss(self, model, inputs, **_):
            return model(**inputs).logits.sum()

    assert is_trainer(Quiet.__new__(Quiet), "RewardTrainer") and not is_trainer(Own.__new__(Own), "RewardTrainer")
    assert not is_trainer(None, "RewardTrainer")
