"""The loss of a causal language model against a plain loop in float64, and the model's own."""

import math

import pytest
import torch

from lorif_hf.tasks import task_of
from lorif_hf.tasks.base import losses_of


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_lm_by_a_loop(build, token_batch, kind, side):
    model, batch = build(kind).eval(), token_batch([6, 3, 5], side=side)
    batch["labels"][0, 2] = -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**inputs).logits.detach().double()
    expected, counts = [], []
    for row in range(3):
        total, count = 0.0, 0
        for position in range(1, 6):
            label = int(batch["labels"][row, position])
            if label != -100:
                scores = [math.exp(value) for value in logits[row, position - 1].tolist()]
                total -= math.log(scores[label] / sum(scores))
                count += 1
        expected.append(total)
        counts.append(count)
    task = task_of(model)
    losses = losses_of(task, model, batch)
    assert losses.shape == (3,) and losses.requires_grad
    torch.testing.assert_close(losses.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert task.targets(batch).tolist() == counts


def test_causal_lm_is_the_models_own_loss_times_its_labels(build, token_batch):
    model, batch = build("llama").eval(), token_batch([6, 4])
    losses = losses_of(task_of(model), model, batch)
    for i in range(2):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        count = (row["labels"][:, 1:] != -100).sum()
        torch.testing.assert_close(losses[i], model(**row).loss * count, rtol=1e-5, atol=0)


def test_causal_lm_in_bfloat16_sums_in_float32(build, token_batch):
    model = build("llama").eval().bfloat16()
    assert losses_of(task_of(model), model, token_batch([6, 4])).dtype == torch.float32
