"""Models out of their wrappers, and their modules and parameters by name."""

import torch
from torch import nn

from lorif_hf.layers import Linear
from lorif_hf.layers.modules import (
    Holders,
    TrackedModule,
    base_model,
    modules_by_name,
    owner_of,
    parameter_shapes,
    tracked_name,
    unwrap,
)


def test_unwrap(build):
    model = build("llama")
    compiled = torch.compile(model, backend="eager")
    assert unwrap(model) is model
    assert unwrap(compiled) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(nn.DataParallel(compiled)) is model
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model


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


def test_holders_of_a_weight(gpt2):
    holders = Holders(gpt2)
    assert [name for name, _ in holders.of(gpt2.lm_head.weight)] == ["transformer.wte", "lm_head"]
    assert holders.of(torch.ones(2)) == []


def test_a_module_by_name_has_those_that_share_its_weight_and_may_be_followed(build):
    model = build("llama")
    up = [layer.mlp.up_proj for layer in model.model.layers]
    up[1].weight = up[0].weight
    names = ["model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj", "absent"]
    names = dict.fromkeys(names, ("linear", "weight")) | {"model.layers.0.mlp.up_proj.bias": ("linear", "bias")}
    found = modules_by_name(model, names, {"model.layers.0.mlp.down_proj"})
    assert list(found) == list(names)[:2]
    shared, followed = found.values()
    assert shared.shared == (up[0],) and not shared.followed
    assert followed.shared == () and followed.followed


def test_the_shape_and_the_weight_of_a_tracked_module():
    layer = nn.Linear(2, 3)
    tracked = TrackedModule.of("layer", Linear(), layer)
    assert tracked.matrix_shape == (2, 3) and tracked.weight is layer.weight and tracked.parameter == "weight"
    assert tracked_name("layer", "weight") == tracked.name == "layer" and tracked_name("a", "bias") == "a.bias"
    assert all(owner_of(tracked_name("a.b", parameter), parameter) == "a.b" for parameter in ("weight", "bias"))
