"""What a forward pass without numbers tells, beside one with numbers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from lorif_hf.estimating.forward import forward_pass
from lorif_hf.layers.adapters import lora_layers
from lorif_hf.layers.experts import dispatches
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.shared_inputs import shared_inputs


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **SIZES, **changes)).eval()


def lora(dropout=0.0):
    config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    return get_peft_model(llama(), config)


def mixtral(experts=4):
    config = MixtralConfig(
        vocab_size=50, num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=3, **SIZES
    )
    return MixtralForCausalLM(config).eval()


def ids(length):
    return {"input_ids": torch.arange(1, length + 1).unsqueeze(0)}


MODELS = {
    "llama": (llama, ids(8)),
    "lora": (lora, ids(8)),
    "bert": (lambda: BertForSequenceClassification(BertConfig(vocab_size=50, **SIZES)), ids(8)),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
        {**ids(8), "decoder_input_ids": torch.arange(1, 9).unsqueeze(0)},
    ),
    "vit": (
        lambda: ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **SIZES)),
        {"pixel_values": torch.zeros(1, 3, 16, 16)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_operations_and_shared_inputs_are_those_of_a_pass_with_numbers(name):
    make, inputs = MODELS[name]
    model = make().eval()
    (model.get_base_model() if name == "lora" else model).set_attn_implementation("eager")  # whose products are seen
    modules = tracked_modules(model)
    found = forward_pass(model, modules, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    assert found.problem is None and found.experts == 1
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=1e-2)
    assert found.shared == shared_inputs(modules, lambda: model(**inputs), lora_layers(model))


@pytest.mark.parametrize("make", [llama, make_gpt2, lora], ids=["llama", "gpt2", "lora"])
def test_what_autograd_keeps_is_that_of_a_pass_with_numbers(make):
    model, length, saved = make().eval(), 12, {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    model.requires_grad_(False)
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(**ids(length)).logits
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) + 8 * logits.numel()
    model = make().eval()
    found = forward_pass(model, tracked_modules(model), length)
    assert found.activations == pytest.approx(kept, rel=0.35)


def test_a_model_is_left_as_it_was():
    model = lora(dropout=0.5).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shared = forward_pass(model, tracked_modules(model), 8).shared
    assert any(name != of for name, of in shared.items())  # as without dropout
    assert all(module.training for module in model.modules())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_experts_count_as_many_as_a_token_goes_to():
    few, many = (forward_pass(m := mixtral(count), tracked_modules(m), 8) for count in (4, 12))
    assert few.experts == many.experts == 3 and few.problem is many.problem is None
    router = 2 * 8 * 2 * 16 * (12 - 4)
    assert many.flops - few.flops == router
    model = mixtral()
    forward_pass(model, tracked_modules(model), 8)
    stacks = [module for module in model.modules() if dispatches(module)]
    assert len(stacks) == 2 and all("forward" not in vars(stack) for stack in stacks)


def test_operations_grow_with_the_tokens():
    model = llama()
    short, long = (forward_pass(model, tracked_modules(model), length) for length in (32, 64))
    assert long.flops >= 2 * short.flops and long.activations == 2 * short.activations


class Odd(nn.Module):
    """What nobody knows how to call; with a stack of experts, that is none of transformers'."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, words):
        return self.layer(words)


def test_what_cannot_be_called_is_guessed_by_its_parameters():
    model = Odd()
    found = forward_pass(model, tracked_modules(model), 5)
    assert found.problem == "TypeError: Odd.forward() got an unexpected keyword argument 'input_ids'"
    assert found.shared == {} and found.flops == 2 * 36 * 5 and found.activations == 2 * 5 * 12 * 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_guess_counts_the_experts_of_a_token_too(monkeypatch):
    model = mixtral()

    def broken(*args, **kwargs):
        raise RuntimeError("not on meta")

    whole = sum(parameter.numel() for parameter in model.parameters())
    stacks = sum(p.numel() for m in model.modules() if dispatches(m) for p in m.parameters(recurse=False))
    monkeypatch.setattr(model.model, "forward", broken)
    found = forward_pass(model, tracked_modules(model), 5)
    assert found.problem == "RuntimeError: not on meta" and found.experts == 3
    assert found.flops == 2 * 5 * (whole - stacks // 4)
