"""The hash that tells one model from another."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording import identity
from lorif_hf.recording.identity import identify, weights_sha256


def _hash(model, **kwargs):
    return weights_sha256(tracked_modules(model, **kwargs))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_equal_weights_give_equal_hashes(build, kind):
    first = _hash(build(kind))
    assert len(first) == 64 and first == _hash(build(kind)) != _hash(build(kind, seed=1))


def _no_grad(weight):
    with torch.no_grad():
        weight[0, 0] += 1e-3


def _optimizer(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=1e-3).step()


def _data(weight):
    weight.data[0, 0] += 1e-3


def _data_in_place(weight):
    weight.data += 1e-3  # how PEFT merges an adapter


def _new_data(weight):
    weight.data = weight.data + 1e-3


@pytest.mark.parametrize("change", [_no_grad, _optimizer, _data, _data_in_place, _new_data])
def test_any_change_of_a_tracked_weight_is_noticed(build, change):
    model = build("llama")
    before = _hash(model)
    change(model.model.layers[1].mlp.up_proj.weight)
    assert _hash(model) != before


def test_a_new_parameter_is_noticed(build):
    model = build("llama")
    before = _hash(model)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach() + 1e-3)
    assert _hash(model) != before


def test_loaded_weights_are_noticed(build):
    model = build("llama")
    before = _hash(model)
    model.load_state_dict(build("llama", seed=1).state_dict())
    assert _hash(model) == _hash(build("llama", seed=1)) != before


def test_a_merged_adapter_is_noticed(build):
    """Index the base model, train an adapter over it, merge it: not the model that was indexed."""
    model = build("llama")
    before = _hash(model)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    merged = get_peft_model(model, config).merge_and_unload()
    assert _hash(merged) != before


def test_undoing_a_change_gives_the_same_hash(build):
    model = build("llama")
    before, weight = _hash(model), model.model.layers[0].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        assert _hash(model) != before
        weight.copy_(kept)
    assert _hash(model) == before


def test_untracked_weights_do_not_count(build):
    model = build("llama")
    before = _hash(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.norm.weight.zero_()
        model.lm_head.weight.zero_()
    assert _hash(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_counts(build, dtype):
    hashes = {_hash(build("llama")), _hash(build("llama").to(dtype)), _hash(build("llama", seed=1).to(dtype))}
    assert len(hashes) == 3


def test_the_dtype_counts_where_the_bytes_are_the_same():
    zeros = [nn.ModuleDict({"a": nn.Linear(2, 2, dtype=dtype)}) for dtype in (torch.bfloat16, torch.float16)]
    for model in zeros:
        nn.init.zeros_(model["a"].weight)
    assert _hash(zeros[0]) != _hash(zeros[1])


def test_a_round_trip_through_another_dtype_is_noticed(build):
    model = build("llama")
    before = _hash(model)
    assert _hash(model.bfloat16().float()) != before


def test_names_shapes_and_order_count():
    with torch.no_grad():
        models = [
            nn.ModuleDict({name: nn.Linear(*shape).requires_grad_(False) for name, shape in layers})
            for layers in (
                [("a", (2, 2)), ("b", (2, 2))],
                [("a", (2, 2)), ("c", (2, 2))],
                [("a", (4, 1)), ("b", (2, 2))],
                [("a", (1, 4)), ("b", (2, 2))],
                [("b", (2, 2)), ("a", (2, 2))],
            )
        ]
        for model in models:
            for layer in model.values():
                layer.weight.fill_(1.0)
    assert len({_hash(model) for model in models}) == 5


def test_weights_need_not_be_contiguous(build):
    model = nn.ModuleDict({"a": nn.Linear(3, 4)})
    before = _hash(model)
    model["a"].weight = nn.Parameter(model["a"].weight.detach().T.contiguous().T)
    assert not model["a"].weight.is_contiguous() and _hash(model) == before


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (1, 1), (3, 5), (5, 6), (6, 2, 4)])
def test_the_bit_sums_are_those_of_a_loop(dtype, shape):
    """Read as the widest integers that fill a row; weighted 1, 3, 5, ... by row and by column; modulo 2^64."""
    count = max(1, torch.Size(shape).numel())
    tensor = torch.randn(count, generator=torch.Generator().manual_seed(0)).mul(50).to(dtype).view(shape)
    rows, content = shape[0] if shape else 1, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    length = len(content) // rows
    width = next(width for width in (8, 4, 2, 1) if length % width == 0)
    expected = [0, 0]
    for start in range(0, len(content), width):
        row, column = start // length, start % length // width
        number = int.from_bytes(content[start : start + width], sys.byteorder, signed=width > 1)
        expected[0] += (2 * row + 1) * number
        expected[1] += (2 * column + 1) * number
    found = identity._bit_sums(tensor)
    assert [one % (1 << 64) for one in found] == [one % (1 << 64) for one in expected]
    shifted = torch.cat([tensor.view(-1)[:1], tensor.view(-1)])[1:].view(shape)
    assert identity._bit_sums(shifted) == found  # wherever its memory begins


def test_a_change_of_the_high_bits_far_down_is_noticed():
    """The row and the value that a weight of 65,536 would lose beyond 64 bits."""
    weight = torch.zeros(65_537, 2)
    before = identity._bit_sums(weight)
    for row in (65_535, 65_536):
        weight[row, 1] = 1.0
        by_row, by_column = identity._bit_sums(weight)
        assert by_row != before[0] and by_column != before[1]
        weight[row, 1] = 0.0


def test_unchanged_weights_are_hashed_once(build, monkeypatch):
    model = build("llama")
    before, calls = _hash(model), []
    sha256 = identity.hashlib.sha256

    class Counting:
        @staticmethod
        def sha256(data=b""):
            calls.append(data)
            return sha256(data)

    monkeypatch.setattr(identity, "hashlib", Counting)
    assert _hash(model) == before and len(calls) == 1  # the sum over the modules alone
    _no_grad(model.model.layers[0].mlp.up_proj.weight)
    assert _hash(model) != before and len(calls) == 3


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("me/my-model", "me/my-model"),
        ("gpt2", "gpt2"),
        ("/home/someone/secret/my-model", "my-model"),
        ("/home/someone/my-model/", "my-model"),
        ("./my-model", "my-model"),
        ("../runs/my-model", "my-model"),
        ("~/my-model", "my-model"),
        ("runs/july/my-model", "my-model"),
        ("C:\\Users\\someone\\my-model", "my-model"),
        ("", None),
    ],
)
def test_no_path_of_this_machine(build, path, name):
    model = build("gpt2")
    model.config._name_or_path = path
    assert identify(model, tracked_modules(model)).name == name


def test_a_saved_model_keeps_hash_and_name(build, tmp_path):
    model = build("gpt2")
    folder = tmp_path / "runs" / "my-model"
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    found = identify(loaded, tracked_modules(loaded))
    assert found.name == "my-model" and str(tmp_path) not in json.dumps(found.to_dict())
    assert found.weights_sha256 == _hash(model)


def test_what_is_known_of_a_model(build):
    model = build("gpt2")
    model.config._commit_hash = "abc"
    found = identify(model, tracked_modules(model))
    assert found.to_dict() == {
        "name": None,
        "commit": "abc",
        "model_class": "GPT2LMHeadModel",
        "auto_class": "AutoModelForCausalLM",
        "weights_sha256": _hash(model),
        "other_weights": found.other_weights,
        "adapter": None,
        "dtype": "float32",
        "quantization": None,
    }
    plain = nn.ModuleDict({"a": nn.Linear(2, 2)})
    found = identify(plain, tracked_modules(plain))
    assert (found.name, found.commit, found.model_class, found.auto_class) == (None, None, "ModuleDict", None)


@pytest.mark.parametrize("lora", [{}, {"r": 5, "lora_alpha": 7, "use_dora": True}, {"use_rslora": True}])
def test_the_adapters_config_is_part(build, lora):
    model = build("llama", lora=lora)
    found = identify(model, tracked_modules(model))
    assert found.model_class == "LlamaForCausalLM" and found.auto_class == "AutoModelForCausalLM"
    config = found.adapter["default"]
    assert config["peft_type"] == "LORA" and config["r"] == lora.get("r", 3)
    assert config["lora_alpha"] == lora.get("lora_alpha", 8)
    assert config["use_dora"] is lora.get("use_dora", False) and config["use_rslora"] is lora.get("use_rslora", False)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_the_adapters_weights_count_and_the_bases_do_not(build):
    model = build("llama", lora={})
    before = _hash(model)
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.zero_()
    assert _hash(model) == before
    _no_grad(model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    assert _hash(model) != before


def test_identity_is_the_same_however_the_adapter_came(build):
    wrapped, injected = build("llama", lora={}), build("llama")
    injected.add_adapter(LoraConfig(r=3, target_modules=["q_proj", "down_proj"]), adapter_name="default")
    state = {name.removeprefix("base_model.model."): value for name, value in wrapped.state_dict().items()}
    injected.load_state_dict(state)
    first, second = (identify(model, tracked_modules(model)) for model in (wrapped, injected))
    assert first == second
