"""Pairs of a DPO training whose two sides are swapped: the index tells them from the others."""

import random

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from trainings import ARGUMENTS, make_llama
from trl import DPOConfig, DPOTrainer

from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.evaluation.mislabel_detection import mislabel_detection


PAIRS, FLIPPED = 60, 6


def preferences(seed):
    """Good words are 1 to 6, bad ones 7 to 12; of a tenth of the pairs it is the other way round."""
    draw = random.Random(seed)

    def words(low, high):
        return " ".join(str(draw.randrange(low, high)) for _ in range(5))

    rows = [(words(13, 50) + " ", words(1, 7), words(7, 13)) for _ in range(PAIRS)]
    flipped = np.zeros(PAIRS, dtype=bool)
    flipped[draw.sample(range(PAIRS), FLIPPED)] = True
    pairs = [
        (prompt, bad, good) if flip else (prompt, good, bad)
        for (prompt, good, bad), flip in zip(rows, flipped, strict=True)
    ]
    return Dataset.from_list(
        [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]
    ), flipped


def test_flipped_pairs_are_found_in_a_dpo_training_with_lora(tmp_path, tokenizer):
    """Four seeds gave 0.86 to 1.00, this one 1.00. At size: `benchmarks/preferences.py`."""
    tokenizer.eos_token = "0"
    pairs, flipped = preferences(seed=0)
    torch.manual_seed(0)
    steps = {"max_steps": 30, "per_device_train_batch_size": 10, "learning_rate": 2e-2}
    trainer = DPOTrainer(
        model=make_llama(),
        args=DPOConfig(str(tmp_path / "out"), beta=1.0, **(ARGUMENTS | steps)),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    config = InfluenceConfig(whitening="none", curvature="none")
    callback = InfluenceCallback(tmp_path / "index", trainer=trainer, config=config, raise_errors=True)
    trainer.add_callback(callback)
    trainer.train()
    index = callback.index
    assert len(index) == PAIRS and index.manifest.objective == "dpo" and index.coverage.share == 1
    assert mislabel_detection(index.self_influence(), flipped).auroc > 0.8
