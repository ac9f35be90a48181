"""Matrices that PEFT keeps as bare parameters are recorded as autograd has them, each row alone."""

import pytest
import torch
from torch import nn

from lorif_hf.layers import AdapterMatrix, kind_of
from lorif_hf.layers.selection import Selection, tracked_modules


LORA = {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": False}
TOKENS = [3, 7, 8, 20]


def noisy(model):
    """Trained tokens begin as what they were, and LoRA's B at zero."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_entries_of_a_dictionary():
    entries = nn.ParameterDict({"a": torch.ones(2, 5), "b": torch.ones(3), "c": nn.Parameter(torch.ones(2, 9000))})
    kind = AdapterMatrix()
    assert isinstance(kind_of(entries, "a"), AdapterMatrix) and not kind.accepts(entries, "b")
    assert kind.shape(entries, "a").widths == kind.as_matrix(entries["a"]).shape == (5, 2)
    assert kind.shape(entries, "c").widths == (512, 2)  # a vocabulary
    assert not kind.accepts(nn.Linear(2, 3), "weight")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"trainable_token_indices": TOKENS},
        {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [1, 2]}},
    ],
    ids=["LoRA on the embedding", "and on the head", "trained tokens", "of the head too"],
)
@pytest.mark.parametrize("lengths", [[6, 5], [4]], ids=["padded", "one row"])
def test_the_gradient_is_that_of_autograd(
    build, token_batch, record, reference, assert_same_gradients, options, lengths
):
    model = noisy(build("llama", lora={**LORA, **options}))
    batch = token_batch(lengths)
    batch["input_ids"][0, :3] = torch.tensor([3, 20, 3])  # a trained token twice, and others beside
    found = record(model, batch).gradients
    assert any("lora_embedding_A" in name or "trainable_tokens_delta" in name for name in found)
    assert_same_gradients(found, reference(model, batch))


def test_trained_tokens_of_a_tied_head_count_in_both_uses(
    build, token_batch, record, reference, assert_same_gradients
):
    model = noisy(build("llama", lora={**LORA, "trainable_token_indices": TOKENS}, tie_word_embeddings=True))
    batch = token_batch([6, 5])
    batch["input_ids"][0, :2] = torch.tensor([3, 20])
    assert_same_gradients(record(model, batch).gradients, reference(model, batch))
    assert len([name for name in (t.name for t in tracked_modules(model)) if "trainable_tokens" in name]) == 1


def test_a_row_without_a_trained_token_has_no_gradient_there(build, token_batch, record):
    model = noisy(build("llama", lora={**LORA, "trainable_token_indices": [49]}))
    batch = token_batch([6, 5])
    batch["input_ids"][batch["input_ids"] == 49] = 5
    batch["input_ids"][1, 1] = 49
    found = record(model, batch).gradients["model.embed_tokens.token_adapter.trainable_tokens_delta.default"]
    assert not bool(found[0].any()) and bool(found[1].any())


def test_all_that_is_trained_is_covered(build):
    model = build("llama", lora={**LORA, "target_modules": ["q_proj", "embed_tokens"]})
    assert Selection(model, "all-linear").coverage().share == 1
