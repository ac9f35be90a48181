"""LoRA on the weight of a plain layer as a bare parameter: A's and B's gradients are autograd's."""

import pytest
import torch
from kinds import llama
from mixtures import autograd, batch_of, errors_of, recorded, tracked_of
from peft import LoraConfig, get_peft_model

from lorif_hf.layers.selection import Selection


def adapted(parameters, **options):
    torch.manual_seed(1)
    config = {"r": 3, "lora_alpha": 5, "init_lora_weights": False, "target_modules": ["q_proj"]}
    return get_peft_model(llama(), LoraConfig(**{**config, "target_parameters": parameters, **options})).eval()


@pytest.mark.parametrize("lengths", [(7, 4, 5), (6,)])
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"target_modules": []}], ids=["lora", "rslora", "alone"]
)
def test_equal_to_autograd_row_by_row(options, lengths):
    model, batch = adapted(["mlp.down_proj.weight", "o_proj.weight"], **options), batch_of(lengths)
    tracked = tracked_of(model, "all-linear")
    assert sum("down_proj.lora_" in t.name or "o_proj.lora_" in t.name for t in tracked) == 8
    assert Selection(model, "all-linear").coverage().share == 1.0
    hooks = [len(module._forward_hooks) for module in model.modules()]
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5, errors
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_two_active_adapters():
    model, batch = adapted(["down_proj.weight"]), batch_of()
    other = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["down_proj.weight"]}
    model.add_adapter("second", LoraConfig(**other, init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    tracked = tracked_of(model)
    assert {t.name.rpartition(".")[2] for t in tracked} == {"default", "second"}
    assert max(errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch)).values()) < 1e-5
