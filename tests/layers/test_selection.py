"""Which layers are tracked, under which names, and what is said where none can be."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import MatrixShape
from lorif_hf.layers.selection import Selection, tracked_modules


def _names(model, *args, **kwargs):
    return [t.name for t in tracked_modules(model, *args, **kwargs)]


_BESIDE_LINEAR = "of the kind '%s', which 'all-linear' leaves out: target_modules='all' takes it"


def _tables(*args):
    return [t.name for t in tracked_modules(*args) if t.kind.name == "embedding"]


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
    assert (linear.kind.name, linear.matrix_shape) == ("linear", (16, 24))
    assert linear.module.weight.shape == (24, 16)
    conv = next(t for t in tracked_modules(build("gpt2")) if t.name.endswith("h.0.mlp.c_fc"))
    assert (conv.kind.name, conv.matrix_shape) == ("conv1d", (16, 64))
    assert conv.module.weight.shape == (16, 64) and isinstance(conv.module, Conv1D)


@pytest.mark.parametrize("target", ["lm_head", ["lm_head"], ".*head"])
def test_a_head_named_explicitly_is_tracked(build, target):
    assert _names(build("llama"), target) == ["lm_head"]
    assert _names(build("gpt2", tie_word_embeddings=False), target) == ["lm_head"]


@pytest.mark.parametrize("target", [["lm_head"], ["wte"], ["lm_head", "wte"], r".*(lm_head|wte)"], ids=str)
def test_a_head_that_is_tied_to_the_embedding_is_the_embeddings(build, target):
    (tracked,) = tracked_modules(build("gpt2"), target)
    assert (tracked.name, tracked.kind.name, tracked.followed) == ("transformer.wte", "embedding", True)
    assert tracked.shape == MatrixShape(320, 16, in_width=16)


def test_a_tied_head_is_no_linear_layer_and_goes_with_its_embedding(build):
    model = build("gpt2")
    assert _names(model, "all-linear", []) == GPT2
    tables = ["transformer.wte", "transformer.wpe"]
    assert _tables(model, "all") == _tables(model, "all", ["lm_head"]) == tables
    assert _tables(model, "all", ["wte"]) == tables[1:] and "lm_head" not in _names(model, "all", ["wte"])
    assert _tables(build("llama"), "all") == ["model.embed_tokens"]  # not tied
    assert "lm_head" in _names(build("llama"), "all")


def test_the_embedding_leads_wherever_it_stands():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body, self.table = nn.Linear(2, 5), nn.Linear(2, 2), nn.Embedding(5, 2)
            self.head.weight = self.table.weight

    assert (
        _tables(Model(), "all") == ["table"]
        and "head" not in _names(Model(), "all")
        and _names(Model(), ["head"]) == ["table"]
    )


def test_an_embedding_whose_weight_is_also_of_no_kind_is_refused(build):
    model = build("gpt2")
    model.other = nn.PReLU(16)
    model.other.weight = model.transformer.wte.weight
    with pytest.raises(
        UnsupportedModuleError, match=r"'transformer.wte' cannot.*also that of 'other' \(PReLU\).*Untie"
    ):
        tracked_modules(model, ["wte"])
    reasons = {u.name: u.reason for u in Selection(model, "all").coverage().untracked}
    assert "'other' (PReLU), whose use of it is not recorded" in reasons["transformer.wte.weight"]


def test_the_head_stays_out_whatever_else_is_excluded(build):
    names = _names(build("llama"), exclude_modules=["q_proj"])
    assert "lm_head" not in names and names == [name for name in LLAMA if not name.endswith("q_proj")]
    assert _names(build("llama"), exclude_modules=[]) == [*LLAMA, "lm_head"]


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
    with pytest.raises(UnsupportedModuleError, match="selects no module of LlamaForCausalLM: 21 could be"):
        tracked_modules(build("llama"), target)


@pytest.mark.parametrize("exclude", [["mlp.up_proj", "q_proj"], r".*(up|q)_proj"])
def test_exclusions(build, exclude):
    kept = [name for name in LLAMA if not name.endswith(("up_proj", "q_proj"))]
    assert _names(build("llama"), exclude_modules=exclude) == kept
    assert _names(build("llama"), ".*_proj", exclude) == kept


def test_nothing_left_names_choice_and_examples(build):
    with pytest.raises(UnsupportedModuleError) as caught:
        tracked_modules(build("gpt2"), ["q_proj"], ["c_fc"])
    message = str(caught.value)
    assert "target_modules=['q_proj'] with exclude_modules=['c_fc']" in message
    assert "16 could be, for example transformer.wte, transformer.wpe, transformer.h.0.ln_1" in message
    assert "modules of the kinds " in message and ", linear, " in message


def test_a_model_without_a_layer_of_any_kind():
    with pytest.raises(UnsupportedModuleError, match="selects no module of Sequential: it has none"):
        tracked_modules(nn.Sequential(nn.GRU(3, 3), nn.ReLU()))


@pytest.mark.parametrize("target", [["recurrent"], r"re.*"], ids=str)
def test_an_unsupported_module_is_named(build, target):
    model = build("gpt2")
    model.recurrent = nn.GRU(16, 16)
    with pytest.raises(UnsupportedModuleError, match=r"Module 'recurrent' is a GRU, .*exclude_modules"):
        tracked_modules(model, target)


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


class _Times4(nn.Linear):
    def forward(self, x):
        return 4 * super().forward(x)


def test_a_subclass_with_another_forward_is_followed_by_its_weight():
    first, second = tracked_modules(nn.Sequential(nn.Linear(2, 3), _Times4(3, 2)))
    assert not first.followed and second.followed


def test_what_is_not_trained_is_not_tracked(build):
    model = build("llama").requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    assert _names(model) == [name for name in LLAMA if ".1." in name]
    assert _names(model, ["layers.0.mlp.up_proj"]) == ["model.layers.0.mlp.up_proj"]  # the user's word


@pytest.mark.parametrize("kind, head", [("llama", "lm_head"), ("bert-classifier", "classifier")])
def test_a_head_alone_that_is_trained_is_tracked(build, kind, head):
    model = build(kind).requires_grad_(False)
    getattr(model, head).requires_grad_(True)
    assert _names(model) == [head]


def test_a_model_that_was_loaded_frozen_counts_as_trained(build):
    assert _names(build("llama").requires_grad_(False)) == LLAMA


def test_nothing_trained_that_can_be_tracked_says_what_is_trained(build):
    model = build("llama").requires_grad_(False)
    model.model.norm.requires_grad_(True)
    with pytest.raises(UnsupportedModuleError, match=r"selects no module.*What is trained is model.norm.weight\."):
        tracked_modules(model)


def test_two_layers_of_one_weight_are_one_layer(build):
    model = build("llama")
    shared = model.model.layers[0].mlp.up_proj
    model.model.layers[1].mlp.up_proj.weight = shared.weight
    tracked = {t.name: t for t in tracked_modules(model)}
    assert "model.layers.1.mlp.up_proj" not in tracked
    assert tracked["model.layers.0.mlp.up_proj"].shared == (model.model.layers[1].mlp.up_proj,)
    # Its gradient is that of all its uses, whichever of them the patterns select.
    (alone,) = tracked_modules(model, ["layers.1.mlp.up_proj"])
    assert alone.shared == (shared,)


def test_an_integer_weight_is_refused():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModuleError, match="'0' holds its weight as int8: a quantised weight"):
        tracked_modules(nn.Sequential(layer), ["0"])


def test_coverage_names_every_trained_parameter_that_is_left_out(build):
    model = build("llama")
    selection = Selection(model, "all-linear", ["k_proj"])
    coverage = selection.coverage()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tracked = {f"{t.name}.weight" for t in selection.modules}
    assert coverage.trained == sum(sizes.values())
    assert coverage.tracked == sum(sizes[name] for name in tracked)
    assert {u.name: u.size for u in coverage.untracked} == {n: s for n, s in sizes.items() if n not in tracked}
    reasons = {u.name: u.reason for u in coverage.untracked}
    assert reasons["model.norm.weight"] == _BESIDE_LINEAR % "elementwise"
    assert reasons["model.embed_tokens.weight"] == _BESIDE_LINEAR % "embedding"
    assert reasons["lm_head.weight"].startswith("the output head")
    assert reasons["model.layers.0.self_attn.k_proj.weight"] == "left out by exclude_modules=['k_proj']"


def test_coverage_of_biases_of_targets_and_of_what_was_dropped(build):
    model = build("gpt2")
    selection = Selection(model, ["c_attn"])
    coverage = selection.coverage({"transformer.h.1.attn.c_attn": "its gradient is zero in every row"})
    reasons = {u.name: u.reason for u in coverage.untracked}
    assert coverage.tracked == 16 * 48
    assert reasons["transformer.h.0.attn.c_attn.bias"] == "not selected by target_modules=['c_attn']"
    assert reasons["transformer.h.1.attn.c_attn.weight"] == "its gradient is zero in every row"
    assert reasons["transformer.h.0.mlp.c_fc.weight"] == "not selected by target_modules=['c_attn']"


def test_coverage_of_a_frozen_model_counts_what_is_trained(build):
    model = build("llama").requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    coverage = Selection(model, "all-linear").coverage()
    assert all(".1." in u.name for u in coverage.untracked) and 0.9 < coverage.share < 1


NORMS = [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.weight_norm]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("how", NORMS, ids=["weight_norm", "spectral_norm", "the old weight_norm"])
def test_a_weight_that_is_computed_is_not_tracked_and_not_read(how):
    model = nn.Sequential(nn.Linear(3, 3), how(nn.Linear(3, 3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    selection = Selection(model, "all-linear")
    coverage = selection.coverage()
    assert [t.name for t in selection.modules] == ["0"] and any(u.name.startswith("1.") for u in coverage.untracked)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(UnsupportedModuleError, match=r"Module '1.*' is a \w+, which cannot be tracked"):
        tracked_modules(model, ["1", "1.parametrizations.weight"])


def test_what_was_trained_may_be_told(build):
    model = build("llama").requires_grad_(False)
    model.model.layers[0].requires_grad_(True)
    trained = frozenset(name for name, _ in model.named_parameters() if ".layers.1." in name)
    selection = Selection(model, "all-linear", trained=trained)
    assert [t.name for t in selection.modules] == LLAMA
    assert selection.coverage().trained == sum(p.numel() for p in model.model.layers.parameters())
