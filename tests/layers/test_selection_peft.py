"""Tracked matrices of PEFT adapters."""

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers.adapters import inactive_adapters
from lorif_hf.layers.modules import base_model
from lorif_hf.layers.selection import Selection, tracked_modules


LORA = {"r": 3, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
LAYERS = [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]


def _expected(adapter="default", layers=LAYERS):
    return [f"{layer}.lora_{side}.{adapter}" for layer in layers for side in "AB"]


def _names(model, *args, **kwargs):
    return [t.name for t in tracked_modules(model, *args, **kwargs)]


def test_names_are_the_same_however_the_adapter_came(build):
    injected = build("llama")
    injected.add_adapter(LoraConfig(**LORA), adapter_name="default")
    assert _names(build("llama", lora=LORA)) == _names(injected) == _expected()


def test_shapes(build):
    first, second = tracked_modules(build("llama", lora=LORA))[2:4]
    assert (first.kind.name, first.matrix_shape) == ("linear", (24, 3))
    assert (second.kind.name, second.matrix_shape) == ("linear", (3, 16))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert-classifier", "llama-classifier"])
def test_only_the_adapters_matrices(build, kind):
    model = build(kind, lora={})
    names = _names(model)
    assert names and all(".lora_A.default" in name or ".lora_B.default" in name for name in names)
    assert not any("base_model" in name for name in names)


def test_the_classifier_that_peft_saves_is_not_tracked(build):
    model = build("bert-classifier", lora={"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]})
    assert all("lora_" in name for name in _names(model))


@pytest.mark.parametrize(
    ("target", "exclude", "layers"),
    [
        (["q_proj"], None, LAYERS[::2]),
        (r".*\.1\..*", None, LAYERS[2:]),
        ("all-linear", ["q_proj"], LAYERS[1::2]),
        (r"model\..*", r".*\.0\..*", LAYERS[2:]),
        (["model.layers.0.self_attn.q_proj"], None, LAYERS[:1]),
    ],
)
def test_patterns_select_the_adapted_layers(build, target, exclude, layers):
    assert _names(build("llama", lora=LORA), target, exclude) == _expected(layers=layers)


def test_patterns_that_select_no_adapted_layer(build):
    with pytest.raises(UnsupportedModuleError, match=r"4 could be, for example model\.layers\.0\.self_attn\.q_proj, "):
        tracked_modules(build("llama", lora=LORA), ["up_proj"])


def test_one_of_several_adapters_is_active(build):
    model = build("llama", lora=LORA)
    model.add_adapter("other", LoraConfig(**{**LORA, "target_modules": ["q_proj"]}))
    assert _names(model) == _expected()
    model.set_adapter("other")
    assert _names(model) == _expected("other", LAYERS[::2])


def test_two_active_adapters(build, token_batch, record, reference, assert_same_gradients):
    model = build("llama", lora=LORA)
    model.add_adapter("other", LoraConfig(**{**LORA, "target_modules": ["q_proj"]}))
    model.base_model.set_adapter(["default", "other"])
    assert sorted(_names(model)) == sorted(_expected() + _expected("other", LAYERS[::2]))
    batch = token_batch([6, 5])
    assert_same_gradients(record(model, batch).gradients, reference(model, batch))


@pytest.mark.parametrize(
    "merge", [lambda model: model.merge_adapter(), lambda model: model.base_model.merge_adapter()]
)
def test_a_merged_adapter_is_an_error_with_a_way_out(build, merge):
    model = build("llama", lora=LORA)
    merge(model)
    with pytest.raises(UnsupportedModuleError, match=r"'.*q_proj' is merged .*unmerge_adapter.*merge_and_unload"):
        tracked_modules(model)
    model.unmerge_adapter()
    assert _names(model) == _expected()


def test_a_merged_and_unloaded_model_is_a_plain_one(build):
    merged = build("llama", lora=LORA).merge_and_unload()
    assert _names(merged) == _names(build("llama"))


def test_disabled_adapters_are_an_error(build):
    model = build("llama", lora=LORA)
    with model.disable_adapter(), pytest.raises(UnsupportedModuleError, match=r"'.*q_proj' are disabled: enable them"):
        tracked_modules(model)
    assert _names(model) == _expected()
    injected = build("llama")
    injected.add_adapter(LoraConfig(**LORA))
    injected.disable_adapters()
    with pytest.raises(UnsupportedModuleError, match="disabled"):
        tracked_modules(injected)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (
            lambda: IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
            "IA3",
        ),
        (lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING"),
    ],
)
def test_other_methods_are_an_error_with_a_way_out(build, config, method):
    model = get_peft_model(build("llama"), config())
    with pytest.raises(UnsupportedModuleError, match=rf"no LoRA layer to track \(its method is {method}\)") as caught:
        tracked_modules(model)
    assert "only LoRA adapters are supported. Train a LoRA adapter instead." in str(caught.value)
    assert tracked_modules(base_model(model)) if method == "PROMPT_TUNING" else True


def test_an_adapter_over_a_convolution_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x)

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["conv"]))
    with pytest.raises(UnsupportedModuleError, match=r"selects no module of PeftModel: 1 could be, for example conv"):
        tracked_modules(model)


def test_dora_with_a_batch_as_large_as_its_identity(build, token_batch, record, reference, assert_same_gradients):
    """DoRA calls its matrices on an identity of I rows: here as many as there are examples, or tokens."""
    model = build("llama", lora={**LORA, "use_dora": True})
    for lengths in ([3] * 16, [4] * 4, [3]):
        batch = token_batch(lengths)
        assert_same_gradients(record(model, batch).gradients, reference(model, batch), tolerance=2e-5)


def test_flags_of_adapters_survive(build, token_batch, record):
    model = build("llama", lora=LORA)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    record(model, token_batch([3, 4]))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert torch.tensor([flag == ("lora_" in name) for name, flag in before.items()]).all()


def test_an_adapter_on_a_bare_parameter_of_which_no_product_is_seen_is_left_out_and_said(build):
    on_parameter = {"target_parameters": ["embed_tokens.weight"], "lora_dropout": 0.0}
    model = build("llama", lora={**LORA, **on_parameter, "target_modules": ["q_proj"]})
    names = _names(model)
    assert names and all("q_proj" in name for name in names)
    coverage = Selection(model, "all-linear").coverage()
    assert {u.name.rpartition(".lora")[0] for u in coverage.untracked} == {"model.embed_tokens"}
    assert all("on a bare parameter (target_parameters)" in u.reason for u in coverage.untracked)
    with pytest.raises(UnsupportedModuleError, match="embed_tokens' cannot be tracked: its LoRA adapter is on a bare"):
        tracked_modules(model, ["embed_tokens"])
    alone = build("llama", lora={**LORA, **on_parameter, "target_modules": []})
    with pytest.raises(UnsupportedModuleError, match="No layer of the PEFT model can be tracked: its LoRA adapter is"):
        tracked_modules(alone)


def test_what_is_trained_beside_the_adapter_is_told(build):
    model = build("llama", lora={**LORA, "modules_to_save": ["norm"]})
    (norm,) = {u.reason for u in Selection(model, "all-linear").coverage().untracked}
    assert norm == "of the kind 'elementwise', which 'all-linear' leaves out: target_modules='all' takes it"


def test_adapters_that_take_no_part_are_known(build):
    model = build("llama", lora=LORA)
    names = _names(model)
    assert inactive_adapters(model, names) == {} and inactive_adapters(build("llama"), ["model.layers.0"]) == {}
    model.add_adapter("other", LoraConfig(**LORA))
    model.set_adapter("other")
    assert inactive_adapters(model, names) == {"default": ["other"]}
    with model.disable_adapter():
        assert inactive_adapters(model, names) == {"default": []}


def test_adalora_is_refused_by_name(build):
    model = get_peft_model(build("llama"), AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    message = r"q_proj' is a SVDLinear, which keeps its matrices as bare parameters \(AdaLoRA\)"
    with pytest.raises(UnsupportedModuleError, match=message):
        tracked_modules(model)
