"""Which task a model is of, and what of a batch it takes."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForNextSentencePrediction, BertModel

from lorif_hf.errors import ObjectiveError
from lorif_hf.tasks import CausalLM, SequenceClassification, task_of
from lorif_hf.tasks.base import auto_class, batch_size, forward_inputs
from lorif_hf.tasks.segments import SEGMENTS, Segments


@pytest.mark.parametrize(
    ("kind", "lora", "cls", "name", "auto"),
    [
        ("gpt2", None, CausalLM, "causal-lm", "AutoModelForCausalLM"),
        ("llama", {}, CausalLM, "causal-lm", "AutoModelForCausalLM"),
        (
            "bert-classifier",
            None,
            SequenceClassification,
            "sequence-classification",
            "AutoModelForSequenceClassification",
        ),
        (
            "llama-classifier",
            {},
            SequenceClassification,
            "sequence-classification",
            "AutoModelForSequenceClassification",
        ),
    ],
)
def test_the_task_is_found(build, kind, lora, cls, name, auto):
    model = build(kind, lora=lora)
    task = task_of(model)
    assert type(task) is cls and task.name == name and task.needs_labels
    assert auto_class(model) == auto


@pytest.mark.parametrize(
    "model",
    [
        BertModel,
        BertForNextSentencePrediction,
        lambda config: nn.Linear(2, 2),
    ],
)
def test_a_model_of_no_known_task(model):
    model = model(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ObjectiveError, match=rf"known for {type(model).__name__}: .* Pass objective=, a function"):
        task_of(model)
    assert auto_class(model) is None


def test_forward_inputs(build, token_batch):
    model = build("llama", lora={})
    batch = {**token_batch([3]), "use_cache": True, "text": "x", "example_id": torch.tensor([1])}
    assert list(forward_inputs(model, batch)) == ["input_ids", "attention_mask"]
    packed = {"input_ids": batch["input_ids"], "cu_seq_lens_q": torch.tensor([0, 3]), "seq_lengths": [3]}
    assert list(forward_inputs(model, packed)) == ["input_ids", "cu_seq_lens_q"]
    assert list(forward_inputs(torch.nn.Linear(1, 1), packed)) == []


def test_batch_size():
    assert batch_size({"n": 3, "scalar": torch.tensor(1.0), "x": torch.zeros(4, 2)}) == 4
    assert batch_size({"x": torch.zeros(0, 2)}) == 0
    assert batch_size({"x": torch.zeros(1, 5), SEGMENTS: Segments((1, 5), [(0, 0, 2), (0, 2, 4), (0, 4, 5)])}) == 3
