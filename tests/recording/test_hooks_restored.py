"""Hooks that a loss adds or takes away are no trace of a recording."""

import torch
from recordings import build
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from lorif_hf.recording.hooks_restored import hooks_restored


def hooks_of(model):
    return [list(module._forward_hooks.values()) + list(module._forward_pre_hooks) for module in model.modules()]


def test_what_was_added_goes_and_what_was_removed_comes_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    kept = model[0].register_forward_hook(lambda *args, **kwargs: None, with_kwargs=True)
    before = hooks_of(model)
    with hooks_restored(model):
        kept.remove()
        model[1].register_forward_hook(lambda *args: None)
        model[1].register_forward_pre_hook(lambda *args: None)
    assert hooks_of(model) == before and kept.id in model[0]._forward_hooks_with_kwargs
    kept.remove()
    assert not any(hooks_of(model))


def test_gradients_of_inputs_can_be_switched_off_afterwards():
    for enabled in (False, True):
        model = build("llama")
        if enabled:
            model.enable_input_require_grads()
        before = hooks_of(model)
        with hooks_restored(model):
            model.enable_input_require_grads()
            model.enable_input_require_grads()
        assert hooks_of(model) == before and hasattr(model, "_require_grads_hook") == enabled
        model.disable_input_require_grads()
        assert not any(hooks_of(model))


def test_also_after_an_error():
    model = nn.Linear(2, 2)
    try:
        with hooks_restored(model):
            model.register_forward_hook(lambda *args: None)
            raise ValueError
    except ValueError:
        pass
    assert hooks_of(model) == [[]]


def test_transformers_hooks_its_routers_again_where_its_hooks_were_taken_away():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=12, num_key_value_heads=1, num_local_experts=2, **sizes)
    model = MixtralForCausalLM(config)
    asked = {"input_ids": torch.tensor([[1, 2, 3]]), "output_router_logits": True}
    with hooks_restored(model):
        inside = model(**asked).aux_loss
    torch.testing.assert_close(model(**asked).aux_loss, inside)
