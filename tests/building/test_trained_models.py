"""A model named by its folder or Hub id is loaded as it was trained, and its tokenizer with it."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_gpt2, make_rows, plain_config
from transformers import GPT2LMHeadModel

from lorif_hf import InfluenceIndex
from lorif_hf.building.trained_models import trained_model
from lorif_hf.errors import ModelMismatchError, ProcessingClassError


CONFIG = plain_config(projection_factor=2, shard_size=8)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """A model and its tokenizer in a folder."""
    model = make_gpt2().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(saved, tmp_path):
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(GPT2LMHeadModel.from_pretrained(saved), lora).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_model_has_its_own_class_dtype_and_tokenizer(saved):
    model, processing = trained_model(str(saved))
    assert type(model) is GPT2LMHeadModel and model.dtype == torch.bfloat16
    assert processing("3 4")["input_ids"] == [3, 4]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_is_loaded_over_its_base_and_its_weights_are_the_trained_ones(adapter):
    model, processing = trained_model(str(adapter))
    assert isinstance(model, PeftModel) and processing("3 4")["input_ids"] == [3, 4]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("named", [str, lambda path: path], ids=["a string", "a path"])
def test_an_index_of_a_named_model_answers_texts(saved, tmp_path, named):
    index = InfluenceIndex.build(named(saved), make_rows(8), tmp_path / "index", config=CONFIG)
    assert index.manifest.tokenizer and index.manifest.model["name"] == "model"
    assert len(index.attribute(str(saved), "3 4 5", top_k=2).to_list()) == 2


def test_an_index_of_a_named_adapter_is_of_its_own_weights(adapter, tmp_path):
    index = InfluenceIndex.build(str(adapter), make_rows(8), tmp_path / "index", config=plain_config(factor_rank=1))
    assert all("lora_" in module.name for module in index.manifest.modules)
    assert index.attribute(str(adapter), "3 4 5", top_k=1).scores.shape == (1, 1)


def test_a_tokenizer_that_is_passed_goes_before_that_of_the_model(saved, tmp_path):
    class Refused:
        def save_pretrained(self, folder):
            raise ValueError("not into this index")

    with pytest.raises(ProcessingClassError, match="The Refused cannot be saved"):
        InfluenceIndex.build(str(saved), make_rows(8), tmp_path / "index", config=CONFIG, processing_class=Refused())


def test_a_model_without_a_tokenizer_has_none(tmp_path):
    make_gpt2().save_pretrained(tmp_path / "model")
    assert trained_model(str(tmp_path / "model"))[1] is None


def broken(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


def without_weights(folder):
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "no"), "There is no model at .*no' .*Expected a folder with config.json"),
        (lambda folder: broken(folder, architectures=["Mine"]), "transformers has no class Mine to load"),
        (lambda folder: broken(folder, architectures=None), "no class that the config names to load"),
        (lambda folder: broken(folder, model_type="mine"), "There is no model at"),
        (without_weights, "cannot be loaded .*Expected a folder"),
    ],
    ids=["no folder", "an unknown class", "no class", "an unknown type", "no weights"],
)
def test_what_cannot_be_loaded_is_told_with_what_to_do(saved, make, message):
    with pytest.raises(ModelMismatchError, match=message):
        trained_model(make(saved))


def test_an_adapter_without_a_base_is_told(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelMismatchError, match="does not say which base model it is of"):
        trained_model(str(adapter))


def test_a_private_model_is_loaded_with_the_token(hub, saved, tmp_path):
    api = HfApi(token=hub.token)
    api.create_repo("user/private", private=True)
    api.upload_folder(repo_id="user/private", folder_path=saved)
    with pytest.raises(ModelMismatchError, match="There is no model at 'user/private'"):
        trained_model("user/private")
    index = InfluenceIndex.build("user/private", make_rows(8), tmp_path / "index", config=CONFIG, token=hub.token)
    assert index.manifest.model["name"] == "user/private"
