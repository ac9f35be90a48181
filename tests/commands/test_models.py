"""Models by name: as they were trained, and what cannot be loaded told in a line."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2

from lorif_hf import InfluenceIndex
from lorif_hf.commands.models import device_of, queried_model, tokenizer_of, trained_model
from lorif_hf.errors import ModelMismatchError, ProcessingClassError, QueryError


@pytest.fixture(scope="module")
def adapter(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    base = make_gpt2()
    base.config._name_or_path = base.name_or_path = str(saved / "model")
    get_peft_model(base, LoraConfig(r=2, target_modules=["c_fc"], task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


def test_a_model_is_loaded_as_it_was_trained(saved):
    model, names = trained_model(str(saved / "model"), None, None)
    assert torch.equal(model.lm_head.weight, make_gpt2().lm_head.weight) and not model.training
    assert names == [str(saved / "model")] and model.device.type == device_of(None)


def test_an_adapter_is_loaded_over_its_base_with_what_was_trained(saved, adapter):
    model, names = trained_model(str(adapter), None, "cpu")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained) and names == [str(adapter), str(saved / "model")]
    assert tokenizer_of(names, None)("the cat")["input_ids"]  # the base's


def test_a_model_to_ask_with_is_loaded_by_the_class_in_the_index(saved):
    index = InfluenceIndex.from_pretrained(saved / "index")
    model = queried_model(str(saved / "model"), index, None, "cpu")
    assert torch.equal(model.lm_head.weight, make_gpt2().lm_head.weight)


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"model_type": "gpt2"}', '{"model_type": "none"}'])
def test_a_folder_without_a_model_is_told(saved, tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    index = InfluenceIndex.from_pretrained(saved / "index")
    for load in (
        lambda: trained_model(str(tmp_path), None, "cpu"),
        lambda: queried_model(str(tmp_path), index, None, None),
    ):
        with pytest.raises(ModelMismatchError, match=str(tmp_path)) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_a_name_that_the_hub_does_not_know_is_told(hub, saved):
    index = InfluenceIndex.from_pretrained(saved / "index")
    with pytest.raises(ModelMismatchError, match="No model can be loaded from user/none .* pass token="):
        queried_model("user/none", index, None, None)
    with pytest.raises(ModelMismatchError, match="user/none"):
        trained_model("user/none", None, None)


def test_a_tokenizer_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ProcessingClassError, match=f"No tokenizer can be loaded from {tmp_path} .*Pass --tokenizer"):
        tokenizer_of([str(tmp_path / "x"), str(tmp_path)], None)


def test_a_device_that_is_not_here_is_told():
    assert device_of("cpu") == "cpu"
    with pytest.raises(QueryError, match="device='mars' cannot be used here"):
        device_of("mars")
