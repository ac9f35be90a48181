"""The numbers of weights that accelerate keeps elsewhere."""

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny import make_gpt2
from torch import nn

from lorif_hf.layers.offloading import offloaded


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_the_numbers_are_those_of_before(tmp_path, where):
    model, device = make_gpt2(), torch.device("cpu")
    expected = {name: tensor.clone() for name, tensor in model.transformer.h[0].mlp.c_fc.named_parameters()}
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=device)
    module = model.transformer.h[0].mlp.c_fc
    assert module.weight.is_meta
    for name, tensor in expected.items():
        assert torch.equal(torch.as_tensor(offloaded(module, name)), tensor)
    assert offloaded(module, "another") is None
    add_hook_to_module(module, ModelHook(), append=True)  # one of several
    assert torch.equal(torch.as_tensor(offloaded(module, "weight")), expected["weight"])


def test_a_module_without_a_hook_has_none():
    assert offloaded(nn.Linear(2, 2), "weight") is None
