"""Weights of checkpoints in a model that is there: loaded exactly, and its own back to the bit."""

import json
import random

import pytest
import torch
from checkpointed import make_lora
from safetensors.torch import load_file, save_file
from tiny import make_gpt2
from torch import nn

from lorif_hf.building.checkpoint_weights import CheckpointWeights
from lorif_hf.errors import CheckpointError


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_state(model, state):
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name


@pytest.mark.parametrize("shards", ["5GB", "5KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_is_loaded_and_the_own_weights_come_back(tmp_path, shards, dtype):
    model = make_gpt2(seed=0).to(dtype)
    others = [make_gpt2(seed=seed).to(dtype) for seed in (1, 2)]
    for number, other in enumerate(others):
        other.save_pretrained(tmp_path / str(number), max_shard_size=shards)
    assert (tmp_path / "0" / "model.safetensors.index.json").exists() == (shards == "5KB")
    own, parameters = state_of(model), list(model.parameters())
    with CheckpointWeights(model) as weights:
        for number in (0, 1, 0):
            weights.load(tmp_path / str(number))
            assert_state(model, others[number].state_dict())
    assert_state(model, own)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert model.lm_head.weight is model.transformer.wte.weight, "still tied"


def test_they_come_back_after_an_error_and_where_nan_stood(tmp_path):
    model = make_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.bias.view(torch.int32)[:2] = torch.tensor([0x7FC00123, -1])  # NaN of two kinds
    bits = {name: tensor.view(torch.int32).clone() for name, tensor in model.state_dict().items()}
    make_gpt2(seed=1).save_pretrained(tmp_path)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), CheckpointWeights(model) as weights:
            weights.load(tmp_path)
            raise error
        assert all(torch.equal(t.view(torch.int32), bits[name]) for name, t in model.state_dict().items())


def test_buffers_are_loaded_too(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 0))
    own = state_of(model)
    other = {name: torch.full_like(tensor, 7) for name, tensor in own.items()}
    save_file(other, tmp_path / "model.safetensors")
    with CheckpointWeights(model) as weights:
        weights.load(tmp_path)
        assert_state(model, other)
    assert_state(model, own)


@pytest.mark.parametrize("way", ["PeftModel", "put in by transformers"])
def test_an_adapter_goes_over_its_base(tmp_path, way):
    other = make_lora(seed=4)
    for name, parameter in other.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    other.save_pretrained(tmp_path)
    if way == "PeftModel":
        model = make_lora()
    else:
        model = make_gpt2()
        model.add_adapter(other.peft_config["default"])
    own = state_of(model)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    with CheckpointWeights(model) as weights:
        weights.load(tmp_path)
        loaded = {n.replace(".default", ""): tensor for n, tensor in model.state_dict().items() if "lora_" in n}
        assert len(loaded) == len(saved)
        for name, tensor in saved.items():
            key = name if way == "PeftModel" else name.removeprefix("base_model.model.")
            assert torch.equal(loaded[key], tensor)
        base = {name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
        assert all(torch.equal(tensor, own[name]) for name, tensor in base.items())
    assert_state(model, own)


def test_the_active_adapter_is_the_one(tmp_path):
    model = make_lora()
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    other = make_lora(seed=3)
    other.save_pretrained(tmp_path / "second")
    own = state_of(model)
    with CheckpointWeights(model) as weights:
        weights.load(tmp_path)
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, own[name])}
        assert changed and all("second" in name for name in changed)
    assert_state(model, own)


def refused(model, folder, message):
    own = state_of(model)
    with pytest.raises(CheckpointError, match=message), CheckpointWeights(model) as weights:
        weights.load(folder)
    assert_state(model, own)


def test_other_weights_are_refused_with_what_to_do(tmp_path):
    make_gpt2(width=8).save_pretrained(tmp_path / "small")
    message = (
        r"not those of this GPT2LMHeadModel: \d+ tensor\(s\) have another shape, first 'transformer.*Pass a function"
    )
    refused(make_gpt2(), tmp_path / "small", message)
    make_gpt2().save_pretrained(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    name = random.choice([name for name in tensors if "ln_1" in name])
    (tmp_path / "part").mkdir()
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "part/model.safetensors")
    refused(make_gpt2(), tmp_path / "part", rf"1 tensor\(s\) are missing, first '{name}'")
    save_file({**tensors, "new": torch.ones(1)}, tmp_path / "part/model.safetensors")
    refused(make_gpt2(), tmp_path / "part", r"1 tensor\(s\) are not the model's, first 'new'")
    refused(make_lora(), tmp_path / "whole", "holds no adapter_model.safetensors, and the model has the adapter")
    make_lora().save_pretrained(tmp_path / "adapter")
    refused(make_gpt2(), tmp_path / "adapter", "of an adapter's checkpoint, pass the model with its adapter")


def test_damaged_files_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"123")
    refused(make_gpt2(), tmp_path, "cannot be read")
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    for text in ("", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        refused(make_gpt2(), tmp_path, "is not the index of a model's weights")
    index.write_text(json.dumps({"weight_map": {"a": "missing.safetensors"}}))
    refused(make_gpt2(), tmp_path, "cannot be read")
