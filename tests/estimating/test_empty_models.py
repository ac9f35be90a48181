"""Models without weights, from the configs in folders."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from lorif_hf.errors import ModelMismatchError
from lorif_hf.estimating.empty_models import empty_model
from lorif_hf.layers.selection import tracked_modules


def save_config(folder, **changes):
    config = make_gpt2().config
    config.architectures = ["GPT2LMHeadModel"]
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    return str(folder)


def save_adapter(folder, base, **changes):
    config = LoraConfig(**{"r": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"} | changes)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    return str(folder)


def test_a_folder_with_a_config_is_enough(tmp_path):
    model = empty_model(save_config(tmp_path))
    assert isinstance(model, GPT2LMHeadModel) and all(parameter.is_meta for parameter in model.parameters())


def test_the_dtype_is_the_configs(tmp_path):
    assert empty_model(save_config(tmp_path, dtype="bfloat16")).dtype == torch.bfloat16


def test_an_unknown_class_is_told(tmp_path):
    with pytest.raises(ModelMismatchError) as caught:
        empty_model(save_config(tmp_path, architectures=["NoSuchModel"]))
    assert str(caught.value) == (
        f"transformers has no NoSuchModel, which the config of {tmp_path} names: its layers cannot be laid out "
        "without its own code."
    )


def test_an_adapter_is_laid_out_on_its_base_as_it_was_trained(tmp_path):
    base = save_config(tmp_path / "base", dtype="bfloat16")
    model = empty_model(save_adapter(tmp_path / "adapter", base))
    real = get_peft_model(make_gpt2(), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    assert [t.name for t in tracked_modules(model)] == [t.name for t in tracked_modules(real)]
    assert all(parameter.is_meta for parameter in model.parameters())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4 and all(".lora_" in name for name in trained)
    assert model.base_model.model.transformer.wte.weight.dtype == torch.bfloat16


def test_an_adapter_of_a_classifier_has_a_classifier_below_it(tmp_path):
    base = save_config(tmp_path / "base")
    model = empty_model(save_adapter(tmp_path / "adapter", base, task_type="SEQ_CLS"))
    assert isinstance(model.get_base_model(), GPT2ForSequenceClassification)


def test_an_adapter_without_its_base_names_it(tmp_path):
    adapter = save_adapter(tmp_path / "adapter", str(tmp_path / "gone"))
    with pytest.raises(ModelMismatchError) as caught:
        empty_model(adapter)
    start = f"{adapter} is an adapter of {tmp_path / 'gone'}, which cannot be laid out. No model config is found at "
    assert str(caught.value).startswith(start)


def test_an_adapter_that_does_not_go_onto_its_base_is_told(tmp_path):
    base = save_config(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["no_such_layer"])
    with pytest.raises(ModelMismatchError, match=rf"The adapter {adapter} does not go onto {base} \(.*no_such_layer"):
        empty_model(adapter)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "The adapter_config.json of .* cannot be read"),
        (json.dumps({"peft_type": "NOTHING"}), "The adapter_config.json of .* cannot be read"),
        (json.dumps({"peft_type": "LORA"}), "The adapter_config.json of .* does not say base_model_name_or_path"),
    ],
)
def test_a_broken_adapter_config_is_told(tmp_path, content, message):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ModelMismatchError, match=message):
        empty_model(str(tmp_path))


def test_nothing_at_all_is_told(tmp_path):
    with pytest.raises(ModelMismatchError, match=f"No model config is found at {tmp_path / 'none'} "):
        empty_model(str(tmp_path / "none"))
