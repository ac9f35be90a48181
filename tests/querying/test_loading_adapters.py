"""A model of an adapter is loaded by the adapter's name: its base, and every adapter under its name in the index."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import ModelMismatchError
from lorif_hf.querying.loading import load_model


ROWS = [{"input_ids": [3 + row, 14, 15, 9 + row, 2]} for row in range(4)]
LORA = {"r": 2, "target_modules": ["c_attn"], "init_lora_weights": False}


@pytest.fixture
def base(tmp_path):
    """A folder with a base model."""
    folder = tmp_path / "base"
    make_gpt2().save_pretrained(folder)
    return folder


def trained(base, **options):
    """A model with an adapter over the base, as a training leaves it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**LORA, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task_type": "CAUSAL_LM"},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 1}},
    ],
    ids=str,
)
def test_scores_are_those_of_the_model_that_was_trained(base, tmp_path, options):
    model = trained(base, **options)
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(index.scores(str(tmp_path / "adapter"), ROWS), index.scores(model, ROWS))
    assert index.attribute(tmp_path / "adapter", ROWS[1], top_k=1).indices.shape == (1, 1)


def test_several_adapters_under_their_names(base, tmp_path):
    model = trained(base)
    model.add_adapter("second", LoraConfig(**LORA))
    model.set_adapter("second")
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    assert {entry.name.rpartition(".")[2] for entry in index.manifest.modules} == {"second"}
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(index.scores(str(tmp_path / "adapter"), ROWS), index.scores(model, ROWS))


def test_an_adapter_under_another_name_than_default(base, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA), adapter_name="mine").eval()
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    model.save_pretrained(tmp_path / "adapter")
    folder = str(tmp_path / "adapter" / "mine")
    torch.testing.assert_close(index.scores(folder, ROWS), index.scores(model, ROWS))


def test_an_adapter_that_was_loaded_under_another_name(base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = trained(base)
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    model.save_pretrained(tmp_path / "adapter")
    other = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", adapter_name="mine"
    )
    with pytest.raises(ModelMismatchError, match="of an adapter that the query's model calls 'mine'") as caught:
        index.attribute(other, ROWS[0])
    assert "adapter_name='default'" in str(caught.value)


def test_the_dtype_is_that_of_the_training(base, tmp_path):
    model = trained(base).bfloat16()
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    assert index.manifest.model["dtype"] == "bfloat16"
    loaded = load_model(str(base), {"auto_class": "AutoModelForCausalLM", "dtype": "bfloat16"}, None)
    assert loaded.dtype == torch.bfloat16
    unknown = load_model(str(base), {"auto_class": "AutoModelForCausalLM", "dtype": "os.system"}, None)
    assert unknown.dtype == torch.float32


def test_a_base_that_is_missing(base, tmp_path):
    model = trained(base)
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, said in (
        ("/gone/base", "The base model '/gone/base' of the adapter"),
        (None, "does not say which base"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        with pytest.raises(ModelMismatchError, match=said) as caught:
            index.attribute(str(folder), ROWS[0])
        assert "pass PeftModel.from_pretrained(base_model, " in str(caught.value)


def test_a_folder_without_an_adapter(base, tmp_path):
    index = InfluenceIndex.build(trained(base), ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    with pytest.raises(ModelMismatchError, match=r"is of a model with the adapter 'default', and '.*base' holds none"):
        index.attribute(str(base), ROWS[0])


def test_an_adapter_of_another_base(base, tmp_path):
    model = trained(base)
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    model.save_pretrained(tmp_path / "adapter")
    make_gpt2(width=24).save_pretrained(base)
    with pytest.raises(ModelMismatchError, match="does not go with its base model"):
        index.attribute(str(tmp_path / "adapter"), ROWS[0])


def test_a_base_in_four_bits_is_loaded_in_four_bits(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    make_gpt2(width=64).save_pretrained(base)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    quantised = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, dtype="float32")
    torch.manual_seed(5)
    model = get_peft_model(quantised, LoraConfig(**LORA)).eval()
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.grad_dot())
    assert index.manifest.model["quantization"]["bnb_4bit_quant_type"] == "nf4"
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(index.scores(str(tmp_path / "adapter"), ROWS), index.scores(model, ROWS))
