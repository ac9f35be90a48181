"""`target_modules="all"`, and what names and patterns mean where a module has several parameters."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers.modules import modules_by_name
from lorif_hf.layers.selection import Selection, tracked_modules


def _names(model, *args):
    return [t.name for t in tracked_modules(model, *args)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert-classifier", "llama-classifier"])
def test_all_takes_every_parameter(build, kind):
    model = build(kind)
    weights = {id(t.weight) for t in tracked_modules(model, "all")}
    assert weights == {id(parameter) for parameter in model.parameters()}
    assert Selection(model, "all").coverage().share == 1


def test_the_weight_and_the_bias_of_a_module_have_names_of_their_own(build):
    tracked = {t.name: t for t in tracked_modules(build("gpt2"), "all")}
    attention, norm = "transformer.h.0.attn.c_attn", "transformer.ln_f"
    assert {name: tracked[name].kind.name for name in (attention, f"{attention}.bias", norm, f"{norm}.bias")} == {
        attention: "conv1d",
        f"{attention}.bias": "bias",
        norm: "elementwise",
        f"{norm}.bias": "elementwise",
    }
    assert tracked[f"{attention}.bias"].matrix_shape == (1, 48) and tracked[norm].matrix_shape == (1, 16)


def test_what_is_tracked_is_found_again_by_name_and_kind(build):
    model = build("gpt2")
    tracked = tracked_modules(model, "all")
    again = modules_by_name(model, {t.name: (t.kind.name, t.parameter) for t in tracked})
    assert [t.name for t in tracked] == list(again)
    assert all(again[t.name].weight is t.weight for t in tracked)


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        (["ln_f"], {"transformer.ln_f", "transformer.ln_f.bias"}),
        (["ln_f.bias"], {"transformer.ln_f.bias"}),
        (["ln_f.weight"], {"transformer.ln_f"}),
        (r".*ln_f.*", {"transformer.ln_f", "transformer.ln_f.bias"}),
    ],
    ids=["both", "bias", "weight", "pattern"],
)
def test_exclusions_name_a_module_or_a_parameter(build, exclude, gone):
    model = build("gpt2")
    assert set(_names(model, "all")) - set(_names(model, "all", exclude)) == gone
    reasons = {u.name: u.reason for u in Selection(model, "all", exclude).coverage().untracked}
    names = {name if name.endswith("bias") else f"{name}.weight" for name in gone}
    assert {name for name, reason in reasons.items() if reason.startswith("left out by exclude_modules")} == names


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (["ln_f"], ["transformer.ln_f"]),
        (["ln_f.bias"], ["transformer.ln_f.bias"]),
        (["ln_f", "ln_f.bias"], ["transformer.ln_f", "transformer.ln_f.bias"]),
        (r".*h\.1\..*c_fc\.bias", ["transformer.h.1.mlp.c_fc.bias"]),
        (r".*h\.1\..*c_fc.*", ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_fc.bias"]),
    ],
    ids=str,
)
def test_a_modules_name_means_all_but_its_bias(build, target, expected):
    assert _names(build("gpt2"), target) == expected


def test_all_takes_what_is_trained_alone(build):
    model = build("llama").requires_grad_(False)
    model.model.norm.requires_grad_(True)
    assert _names(model, "all") == ["model.norm"]
    message = "What is trained is model.norm.weight. target_modules='all' takes it."
    with pytest.raises(UnsupportedModuleError, match=message):
        tracked_modules(model)


def test_a_bias_that_a_container_only_names_is_that_of_the_layer_that_adds_it():
    model = BertForMaskedLM(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    (tracked,) = (t for t in tracked_modules(model, "all") if t.weight is model.cls.predictions.bias)
    assert tracked.name == "cls.predictions.decoder.bias" and not tracked.shared
    without = Selection(model, "all", ["decoder.bias"]).coverage()
    reason = next(u.reason for u in without.untracked if u.name == "cls.predictions.bias")
    assert reason == "left out by exclude_modules=['decoder.bias']"


def test_a_module_of_which_only_the_bias_can_be_tracked_is_refused_by_its_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 2)))
    assert _names(model, "all") == ["0", "0.bias", "1.bias"]
    reasons = {u.reason for u in Selection(model, "all").coverage().untracked}
    assert reasons == {"a weight is computed from it (torch.nn.utils.parametrizations)"}
    with pytest.raises(UnsupportedModuleError, match="'1' is a ParametrizedConv1d, which cannot be tracked"):
        tracked_modules(model, ["1"])
    assert _names(model, ["1.bias"]) == ["1.bias"]


def test_several_modules_of_one_vector_are_one_layer():
    norms = [nn.LayerNorm(3), nn.LayerNorm(3)]
    norms[1].weight = norms[0].weight
    first, *_ = tracked_modules(nn.Sequential(*norms), "all")
    assert first.name == "0" and first.shared == (norms[1],)


def test_all_of_a_model_on_no_device(build):
    with torch.device("meta"):
        model = build("gpt2")
    assert "transformer.ln_f.bias" in _names(model, "all")
