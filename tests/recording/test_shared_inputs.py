"""Which layers have the same inputs, against what is written in the models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorif_hf.layers.adapters import lora_layers
from lorif_hf.layers.linear import Linear
from lorif_hf.layers.modules import Holders, TrackedModule
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.shared_inputs import shared_inputs


def shared_of(model, call):
    return shared_inputs(tracked_modules(model), call)


def ids():
    return torch.arange(1, 7).unsqueeze(0)


def short(shared):
    return {name.removeprefix("model.layers.0."): of.removeprefix("model.layers.0.") for name, of in shared.items()}


def test_queries_keys_and_values_share_and_gate_and_up_do(build):
    model = build("llama")
    shared = short(shared_of(model, lambda: model(ids())))
    of_a_block = {name: of for name, of in shared.items() if not name.startswith("model.")}
    assert of_a_block == {
        **dict.fromkeys(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "self_attn.q_proj"),
        **dict.fromkeys(["mlp.gate_proj", "mlp.up_proj"], "mlp.gate_proj"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_of_layers_with_the_same_inputs_share_them_though_each_casts_them(build, dtype, dora):
    """PEFT keeps adapters of a bfloat16 model in float32. What DoRA makes of its inputs is its own affair."""
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], use_dora=dora)
    model = get_peft_model(build("llama").to(dtype), config).eval()
    layers = lora_layers(model)
    modules = [
        TrackedModule.of(f"{name}.{side}.default", Linear(), getattr(layer, side)["default"], Holders(model))
        for name, layer in layers.items()
        for side in ("lora_A", "lora_B")
    ]
    shared = short(shared_inputs(modules, lambda: model(ids()), layers))
    first = "self_attn.q_proj.lora_A.default"
    expected = {} if dora else {f"self_attn.{name}_proj.lora_A.default": first for name in "qkv"}
    assert {name: of for name, of in shared.items() if not name.startswith("model.")} == expected


def test_layers_that_follow_one_another_share_nothing(build):
    model = build("gpt2")
    assert shared_of(model, lambda: model(ids())) == {}


class Two(nn.Module):
    """Two layers of the same size, called as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how

    def forward(self, x):
        return self.how(self, x)


def in_place(model, x):
    y = model.a(x)
    return y + model.b(x.mul_(2))


HOWS = {
    "the same": (lambda m, x: m.a(x) + m.b(x), True),
    "by name": (lambda m, x: m.a(x) + m.b(input=x), True),
    "both twice": (lambda m, x: m.a(x) + m.b(x) + m.a(x + 1) + m.b(x), False),
    "equal, twice": (lambda m, x: sum(m.a(y) + m.b(y) for y in (x, x + 1)), True),
    "a copy": (lambda m, x: m.a(x) + m.b(x.clone()), False),
    "changed between": (in_place, False),
    "one after the other": (lambda m, x: m.b(m.a(x)), False),
    "one of them": (lambda m, x: m.a(x), False),
    "neither": (lambda m, x: x, False),
}


@pytest.mark.parametrize("name", HOWS)
def test_the_same_tensor_at_every_call_is_the_same_input(name):
    how, same = HOWS[name]
    model = Two(how)
    tracked = [TrackedModule.of(n, Linear(), getattr(model, n), Holders(model)) for n in ("a", "b")]
    shared = shared_inputs(tracked, lambda: model(torch.randn(2, 3, 4)))
    assert shared == ({"a": "a", "b": "a"} if same else {})
    assert not model.a._forward_pre_hooks and not model.b._forward_pre_hooks


def test_tensors_that_are_gone_are_not_taken_for_later_ones():
    """Memory is used again, and with it an object's id."""

    def apart(model, x):
        y = model.a(x * 2)
        return y + model.b(x * 3)

    model = Two(apart)
    tracked = [TrackedModule.of(n, Linear(), getattr(model, n), Holders(model)) for n in ("a", "b")]
    with torch.no_grad():
        for _ in range(20):
            assert shared_inputs(tracked, lambda: model(torch.randn(2, 3, 4))) == {}


def test_a_forward_that_fails_shares_nothing(build):
    model = build("llama")

    def broken():
        model(ids())
        raise RuntimeError("no loss")

    assert shared_of(model, broken) == {}
