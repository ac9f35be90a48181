"""A query's model is the one that was indexed, or the difference is named."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import ModelMismatchError
from lorif_hf.querying.matching import matching_modules


def test_parameters_outside_of_the_recorded_layers_and_the_order_of_rows_count_too(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    with torch.no_grad():
        gpt2.transformer.wpe.weight[3, 3] += 1
    with pytest.raises(ModelMismatchError, match="parameters outside of the recorded layers differ"):
        index.attribute(gpt2, rows.select([0]))
    swapped = make_gpt2()
    index.attribute(swapped, rows.select([0]))
    weight = swapped.transformer.h[0].mlp.c_fc.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    with pytest.raises(ModelMismatchError, match="the recorded layers differ"):
        index.attribute(swapped, rows.select([0]))


def test_an_adapter_of_another_scaling_is_another_model(gpt2, rows, tmp_path):
    model = get_peft_model(gpt2, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    index.attribute(model, rows.select([0]))
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2
    with pytest.raises(ModelMismatchError, match="the adapters' settings, or which of them are active, differ"):
        index.attribute(model, rows.select([0]))


def test_an_adapter_that_is_active_too_is_another_model(gpt2, rows, tmp_path):
    """Its weights were there all along, but had no part in what was recorded."""
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(gpt2, config)
    model.add_adapter("other", config)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    scores = index.scores(model, rows.select([0]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ModelMismatchError, match="or which of them are active, differ"):
        index.scores(model, rows.select([0]))
    model.set_adapter("default")
    torch.testing.assert_close(index.scores(model, rows.select([0])), scores)


def test_of_a_merged_adapter_the_way_out_is_told(gpt2, rows, tmp_path):
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(gpt2, config)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    model.merge_adapter()
    with pytest.raises(ModelMismatchError, match=r"merged into it: model\.unmerge_adapter\(\) takes it out again"):
        index.scores(model, rows.select([0]))


def test_a_side_that_is_kept_at_another_width_is_told(gpt2, rows, tmp_path):
    """Before anything of that width is drawn: the manifest may come from anybody."""
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(target_modules=["wte"]))
    (entry,) = index.manifest.modules
    manifest = replace(index.manifest, modules=[replace(entry, in_width=entry.in_width + 1)])
    with pytest.raises(ModelMismatchError) as caught:
        matching_modules(gpt2, manifest, strict=True)
    assert f"indexed {(entry.in_features, entry.out_features)} (at most {(entry.in_width + 1, 12)} kept)" in str(
        caught.value
    )
