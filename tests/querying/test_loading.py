"""A model by its name is loaded by the Auto class of a registered task, and by no other."""

import pytest
import torch
from tiny import make_gpt2

from lorif_hf.errors import ModelMismatchError
from lorif_hf.querying.loading import load_model


def test_a_model_is_loaded_from_its_folder(tmp_path):
    model = make_gpt2()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), {"auto_class": "AutoModelForCausalLM"}, None)
    assert type(loaded) is type(model)
    for (name, weight), other in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize("name", [None, 3, "AutoModel", "os.system", "AutoModelForCausalLM.x"], ids=str)
def test_what_no_task_names_loads_nothing(name, tmp_path):
    identity = {"auto_class": name, "model_class": "Custom"}
    with pytest.raises(ModelMismatchError) as caught:
        load_model(str(tmp_path), identity, None)
    assert str(caught.value) == (
        "The index was made with a Custom, which no known Auto class loads: load the model yourself and pass it "
        "instead of its name."
    )


@pytest.mark.parametrize("spoilt", ["nothing there", "no config", "no weights", "weights cut off"])
def test_a_folder_without_a_whole_model_is_told(tmp_path, spoilt):
    if spoilt != "nothing there":
        make_gpt2().save_pretrained(tmp_path)
        (tmp_path / ("config.json" if spoilt == "no config" else "model.safetensors")).unlink()
    if spoilt == "weights cut off":
        (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelMismatchError) as caught:
        load_model(str(tmp_path), {"auto_class": "AutoModelForCausalLM"}, None)
    assert str(caught.value).startswith(f"No model can be loaded from {tmp_path} (") and "\n" not in str(caught.value)
    assert "Expected a folder with config.json and weights, or a Hub id" in str(caught.value)
