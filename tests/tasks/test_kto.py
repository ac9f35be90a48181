"""Kahneman-Tversky optimisation: an index against autograd of TRL's own loss of each completion."""

import logging

import pytest
import torch
from preferences import adapter, kto
from trainings import errors_of, make_texts, trained

from lorif_hf.errors import ObjectiveError
from lorif_hf.tasks import KTO


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("peft_config", [None, adapter()], ids=["a reference model", "the adapter off"])
def test_an_index_of_completions(tmp_path, loss_type, peft_config, caplog):
    with caplog.at_level(logging.WARNING):
        trainer, index = trained(tmp_path, lambda path: kto(path, loss_type=loss_type, peft_config=peft_config))
    assert index.manifest.objective == "kto" and not index.manifest.alone
    assert float(errors_of(index, trainer).max()) < 1e-5
    told = "each row is recorded with its own estimate, as the Trainer has it of that row alone"
    assert caplog.text.count(told) == (loss_type == "kto")
    assert index.examples([3])[0]["text"] == f"prompt: 7 8 \ncompletion: {make_texts()[3]}1"


def test_targets_are_the_tokens_of_the_completion():
    assert KTO().targets({"completion_mask": torch.tensor([[0, 1, 1], [1, 0, 0]])}).tolist() == [2, 0]
    with pytest.raises(ObjectiveError, match="'kto' has no margin"):
        KTO().predictions(None, {})
