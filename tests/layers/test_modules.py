"""Which layers are tracked, under which names, and what is said where none can be."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers.modules import base_model, parameter_shapes, unwrap
from lorif_hf.layers.selection import tracked_modules


def _names(model, *args, **kwargs):
    return [t.name for t in tracked_modules(model, *args, **kwargs)]


_LLAMA_LAYER = [f"self_attn.{side}_proj" for side in "qkvo"] + [f"mlp.{side}_proj" for side in ("gate", "up", "down")]
LLAMA = [f"model.layers.{i}.{name}" for i in (0, 1) for name in _LLAMA_LAYER]
GPT2 = [
    f"transformer.h.{i}.{name}" for i in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]


@pytest.mark.parametrize(("kind", "expected"), [("llama", LLAMA), ("gpt2", GPT2), ("llama-classifier", LLAMA)])
def test_all_linear_leaves_out_the_head(build, kind, expected):
    assert _names(build(kind)) == expected


def test_all_linear_of_a_bert_classifier_keeps_the_pooler(build):
    names = _names(build("bert-classifier"))
    assert "bert.pooler.dense" in names and "classifier" not in names and len(names) == 2 * 6 + 1


def test_a_head_of_several_layers_is_left_out_whole():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)
            self.classifier = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3))

    assert _names(Model()) == ["body"]
    assert _names(Model(), exclude_modules=[]) == ["body", "classifier.0", "classifier.2"]


def test_kinds_and_shapes(build):
    linear = next(t for t in tracked_modules(build("llama")) if t.name.endswith("layers.0.mlp.up_proj"))
    assert (linear.kind.name, linear.in_features, linear.out_features) == ("linear", 16, 24)
    assert linear.module.weight.shape == (24, 16)
    conv = next(t for t in tracked_modules(build("gpt2")) if t.name.endswith("h.0.mlp.c_fc"))
    assert (conv.kind.name, conv.in_features, conv.out_features) == ("conv1d", 16, 64)
    assert conv.module.weight.shape == (16, 64) and isinstance(conv.module, Conv1D)


@pytest.mark.parametrize("target", ["lm_head", ["lm_head"], ".*head"])
def test_a_head_named_explicitly_is_tracked(build, target):
    assert _names(build("llama"), target) == ["lm_head"]
    assert _names(build("gpt2"), target) == ["lm_head"]


def test_excluding_something_else_brings_the_head_back(build):
    """The heads are left out by default only: exclude_modules replaces the default."""
    assert _names(build("llama"), exclude_modules=["q_proj"])[-1] == "lm_head"
    assert "lm_head" not in _names(build("llama"), exclude_modules=["q_proj", "lm_head"])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (r".*\.0\..*q_proj", ["model.layers.0.self_attn.q_proj"]),
        (r".*[qk]_proj", [name for name in LLAMA if name.endswith(("q_proj", "k_proj"))]),
        (["q_proj", "mlp.up_proj"], [name for name in LLAMA if name.endswith(("q_proj", "up_proj"))]),
        (["model.layers.1.mlp.up_proj"], ["model.layers.1.mlp.up_proj"]),
        (["up_proj", "q_proj"], [name for name in LLAMA if name.endswith(("q_proj", "up_proj"))]),
    ],
)
def test_targets(build, target, expected):
    assert _names(build("llama"), target) == expected


@pytest.mark.parametrize("target", ["q_proj", "layers.0.self_attn.q_proj", ".*q_pro", ["_proj"], ["proj"], []])
def test_a_regex_matches_the_whole_name_and_a_suffix_whole_parts(build, target):
    with pytest.raises(UnsupportedModuleError, match="selects no module of LlamaForCausalLM: 15 could be"):
        tracked_modules(build("llama"), target)


@pytest.mark.parametrize("exclude", [["mlp.up_proj", "q_proj"], r".*(up|q)_proj"])
def test_exclusions(build, exclude):
    kept = [name for name in LLAMA if not name.endswith(("up_proj", "q_proj"))]
    assert _names(build("llama"), exclude_modules=exclude) == [*kept, "lm_head"]
    assert _names(build("llama"), ".*_proj", exclude) == kept


def test_nothing_left_names_choice_and_examples(build):
    with pytest.raises(UnsupportedModuleError) as caught:
        tracked_modules(build("gpt2"), ["q_proj"], ["c_fc"])
    message = str(caught.value)
    assert "target_modules=['q_proj'] with exclude_modules=['c_fc']" in message
    assert "9 could be, for example transformer.h.0.attn.c_attn" in message
    assert "modules of the kinds conv1d, linear" in message


def test_a_model_without_a_linear_layer():
    with pytest.raises(UnsupportedModuleError, match="selects no module of Sequential: it has none"):
        tracked_modules(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))


@pytest.mark.parametrize(
    ("target", "name", "kind"),
    [
        (["wte"], "transformer.wte", "Embedding"),
        (r".*ln_f", "transformer.ln_f", "LayerNorm"),
        (r"transformer\.h\.0.*", "transformer.h.0.ln_1", "LayerNorm"),
    ],
)
def test_an_unsupported_module_is_named(build, target, name, kind):
    with pytest.raises(UnsupportedModuleError, match=rf"Module '{name}' is a {kind}, .*exclude_modules"):
        tracked_modules(build("gpt2"), target)


def test_containers_that_match_are_passed_over(build):
    target = r"transformer\.h\.0(\.attn|\.mlp|\.mlp\.c_fc)?"
    assert _names(build("gpt2"), target) == ["transformer.h.0.mlp.c_fc"]


def test_the_projection_inside_multihead_attention_is_not_a_layer():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    assert _names(model) == ["linear1", "linear2"]
    with pytest.raises(UnsupportedModuleError, match=r"'self_attn\.out_proj' is a NonDynamicallyQuantizableLinear"):
        tracked_modules(model, ["out_proj"])


def test_a_shared_layer_has_one_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model.append(model[0])
    assert _names(model) == ["0", "2"]


def test_subclasses_of_linear_count():
    class Mine(nn.Linear):
        pass

    assert _names(nn.Sequential(Mine(2, 3))) == ["0"]


def test_unwrap(build):
    model = build("llama")
    compiled = torch.compile(model, backend="eager")
    assert unwrap(model) is model
    assert unwrap(compiled) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(nn.DataParallel(compiled)) is model
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model
    assert _names(unwrap(compiled)) == LLAMA


def test_unwrap_distributed(build, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build("llama")
        assert unwrap(nn.parallel.DistributedDataParallel(model)) is model
    finally:
        torch.distributed.destroy_process_group()


def test_base_model(build):
    plain, adapted = build("llama"), build("llama", lora={})
    assert base_model(plain) is plain
    assert type(base_model(adapted)) is type(plain)
    assert base_model(nn.Linear(1, 1)).in_features == 1


def test_shapes_of_parameters_stand_under_the_names_of_modules(gpt2):
    shapes = parameter_shapes(gpt2)
    assert shapes["transformer.h.0.attn.c_attn.weight"] == [12, 36]
    assert shapes["lm_head.weight"] == shapes["transformer.wte.weight"] == [50, 12]  # tied
