"""A training with the callback ends as one without it, to the bit, and goes on as it."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import support
from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback


CASES = {case.name: case for case in support.cases()}
TOLD = [
    "Mixtral, causal LM, Trainer, none, all",
    "GptOss, causal LM, Trainer, none, all",
    "Mamba, causal LM, Trainer, none, all",
    "Mixtral, causal LM, Trainer, LoRA, target_parameters, all-linear",
    "Llama, causal LM, Trainer, LoRA, trainable tokens, all",
    "Llama, causal LM, Trainer, DoRA, all",
    "Llama, SFT, completion_only_loss, packing, SFTTrainer, LoRA, all-linear",
    "Llama, preferences, DPOTrainer, LoRA, all-linear",
    "BERT, masked LM, Trainer, none, all",
    "T5, seq2seq, Trainer, none, all",
    "ResNet, image classification, Trainer, none, all",
    "wav2vec2, CTC, Trainer, none, all-linear",
]


def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def state(trainer):
    """All that a training leaves."""
    model = trainer.model
    optimizer = trainer.optimizer.state_dict()["state"]
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizer": [part.clone() for of in optimizer.values() for part in of.values() if torch.is_tensor(part)],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "config": model.config.to_json_string(),
        "random": [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))],
        "python": random.getstate(),
    }


def assert_same(found, expected):
    for name, value in expected.items():
        other = found[name]
        if isinstance(value, dict):
            value, other = list(value.values()), list(other.values())
        if isinstance(value, list) and value and torch.is_tensor(value[0]):
            assert len(value) == len(other), name
            assert all(torch.equal(a, b) for a, b in zip(value, other, strict=True)), name
        else:
            assert value == other, name


@pytest.mark.parametrize("name", TOLD)
def test_nothing_is_left_of_the_pass(name, tmp_path):
    case, states = CASES[name], {}
    for with_it in (False, True):
        seed()
        trainer = case.make(tmp_path / str(with_it))
        if with_it:
            config = InfluenceConfig(target_modules=case.target)
            callback = InfluenceCallback(tmp_path / "index", trainer=trainer, config=config, raise_errors=True)
            trainer.add_callback(callback)
        seed()
        trainer.train()
        after = state(trainer)
        if with_it:
            assert len(callback.index) == 6
            trainer.remove_callback(callback)
        trainer.train()  # goes on
        states[with_it] = after, state(trainer)
    for found, expected in zip(states[True], states[False], strict=True):
        assert_same(found, expected)
