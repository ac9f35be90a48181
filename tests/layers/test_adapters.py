"""What PEFT puts into a model, by name and by parameter."""

import pytest
from peft import LoraConfig, get_peft_model

from lorif_hf.layers.adapters import adapted_layer, adapter_parameters, is_part, lora_layers, lora_matrices
from lorif_hf.layers.selection import Selection, tracked_modules


LORA = {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": False}


@pytest.mark.parametrize(
    "name, layer",
    [
        ("model.layers.0.q_proj.lora_A.default", "model.layers.0.q_proj"),
        ("model.embed.lora_embedding_A.default", "model.embed"),
        ("classifier.modules_to_save.default.dense", "classifier"),
        ("model.embed.token_adapter.trainable_tokens_delta", "model.embed"),
        ("model.layers.0.q_proj", "model.layers.0.q_proj"),
    ],
)
def test_the_layer_of_a_part(name, layer):
    assert adapted_layer(name) == layer and is_part(name) == (name != layer)


def test_a_plain_model_has_none(build):
    model = build("llama")
    assert lora_layers(model) == {} and list(adapter_parameters(model)) == []


def test_what_peft_trains(build):
    """The same as `requires_grad` says; of an adapter that is not active, nothing."""
    model = build("llama", lora={**LORA, "modules_to_save": ["lm_head"], "trainable_token_indices": [1, 3]})
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in adapter_parameters(model)} == trained
    model.add_adapter("other", LoraConfig(**LORA))
    assert {id(p) for p in adapter_parameters(model)} == trained
    assert len(list(adapter_parameters(model, active=False))) > len(trained)


def test_the_layers_and_matrices_of_lora(build):
    model = build("llama", lora=LORA)
    layers = lora_layers(model)
    assert list(layers) == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    layer = layers["model.layers.0.self_attn.q_proj"]
    assert list(lora_matrices(layer)) == [
        ("default", "lora_A", layer.lora_A["default"]),
        ("default", "lora_B", layer.lora_B["default"]),
    ]


def test_a_loaded_adapter_counts_as_trained_with_its_copies(build):
    model = build("llama", lora={**LORA, "modules_to_save": ["down_proj"]}).requires_grad_(False)
    names = [tracked.name for tracked in tracked_modules(model)]
    assert names == [
        f"model.layers.{layer}.{part}"
        for layer in range(2)
        for part in (
            "self_attn.q_proj.lora_A.default",
            "self_attn.q_proj.lora_B.default",
            "mlp.down_proj.modules_to_save.default",
        )
    ]
    assert Selection(model, "all-linear").coverage().share == 1


def test_copies_are_selected_as_the_layers_that_they_stand_for(build):
    model = build("llama", lora={**LORA, "modules_to_save": ["down_proj", "lm_head"]})
    asked = [tracked.name for tracked in tracked_modules(model, ["down_proj"])]
    assert asked == [f"model.layers.{layer}.mlp.down_proj.modules_to_save.default" for layer in range(2)]
    heads = [{tracked.name for tracked in tracked_modules(model, target)} for target in ("all-linear", "all")]
    assert heads[1] - heads[0] == {"lm_head.modules_to_save.default"}  # 'all-linear' leaves heads out
    left = [t.name for t in tracked_modules(model, "all-linear", ["q_proj", "lm_head"])]
    assert left == asked


def test_copies_are_recorded_as_autograd_has_them(build, token_batch, record, reference, assert_same_gradients):
    model = build("llama", lora={**LORA, "modules_to_save": ["down_proj"]})
    batch = token_batch([6, 5])
    assert_same_gradients(record(model, batch).gradients, reference(model, batch))


def test_other_trained_biases_beside_an_adapter_are_told(build):
    model = get_peft_model(build("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], bias="all"))
    untracked = {one.name: one.reason for one in Selection(model, "all-linear").coverage().untracked}
    assert any(name.endswith("c_attn.base_layer.bias") for name in untracked)
