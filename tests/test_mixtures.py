"""Mixtures of experts, whole: their index covers what was trained, costs what a dense model's does, and is right."""

import pytest
import torch
from datasets import Dataset
from kinds import rows_of
from mixtures import SIZES, mixture
from torch.nn.utils.rnn import pad_sequence
from trainings import ARGUMENTS
from transformers import AutoModelForCausalLM, JetMoeConfig, MistralConfig, Trainer, TrainingArguments
from truth import GRADIENTS, gram, relative_error

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback


# Of usual proportions: an expert is no narrower than the model, the vocabulary is a small part of the weights. (Of
# Mixtral 8x7B's parameters 0.6% are embedding and head, of Qwen3-30B-A3B's 2.0%, of gpt-oss-120b's 1.0%; but of
# gpt-oss-20b's 5.5%.)
REAL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
}
CONFIGS = {"default": InfluenceConfig(), "gradients": GRADIENTS, "paper": InfluenceConfig.paper(projection_factor=2)}
EXPERTS = {"mixtral": "num_local_experts", "qwen3-moe": "num_experts", "gpt-oss": "num_local_experts"}
ROWS = rows_of((6, 3, 7, 2, 8, 4))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", EXPERTS)
def test_coverage_bytes_and_the_first_rank(tmp_path, name, config):
    model = mixture(name, "grouped_mm", **REAL, **{EXPERTS[name]: 8})
    index = InfluenceIndex.build(model, ROWS, tmp_path / "mixture", config=config)
    dense = AutoModelForCausalLM.from_config(MistralConfig(**{**SIZES, **REAL}))
    of_dense = InfluenceIndex.build(dense, ROWS, tmp_path / "dense", config=config)
    assert index.coverage.share > 0.95
    assert index.bytes_per_example < 1.3 * of_dense.bytes_per_example
    assert index.scores(model, ROWS).argmax(dim=1).tolist() == list(range(len(ROWS)))
    assert model.config._experts_implementation == "grouped_mm"


def padded(rows):
    """A batch of rows of uneven lengths, their tokens as labels."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    mask, labels = [torch.ones_like(row) for row in ids], [row.clone() for row in ids]
    columns = {"input_ids": (ids, 0), "attention_mask": (mask, 0), "labels": (labels, -100)}
    return {key: pad_sequence(value, True, padding) for key, (value, padding) in columns.items()}


@pytest.mark.parametrize("target", ["all-linear", "all"])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek-v3"])
def test_scores_are_those_of_projected_gradients(tmp_path, name, target):
    model = mixture(name, "batched_mm")
    config = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", target_modules=target)
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=config)
    assert relative_error(index, model, ROWS) < 1e-4
    assert any(entry.kind == "experts-bias" for entry in index.manifest.modules) == (
        name == "gpt-oss" and target == "all"
    )


def test_all_layers_projected_together(tmp_path):
    model = mixture("mixtral")
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=InfluenceConfig.trak(output="loss"))
    assert index.scores(model, ROWS).argmax(dim=1).tolist() == list(range(len(ROWS)))


def test_an_index_is_asked_by_the_same_weights_in_another_implementation(tmp_path):
    model, other = mixture("qwen3-moe", "eager"), mixture("qwen3-moe", "batched_mm")
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=GRADIENTS)
    torch.testing.assert_close(index.scores(other, ROWS), index.scores(model, ROWS), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("router_loss", [False, True])
def test_trained_with_the_callback(tmp_path, router_loss):
    """With a loss of the router, which is of the batch, rows go alone: each as a batch of its own trains."""
    model = mixture("mixtral", "grouped_mm", output_router_logits=router_loss, router_aux_loss_coef=0.3)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path / "out"), **ARGUMENTS),
        train_dataset=ROWS,
        data_collator=padded,
    )
    callback = InfluenceCallback(tmp_path / "index", trainer=trainer, config=GRADIENTS, raise_errors=True)
    trainer.add_callback(callback)
    trainer.train()
    expected = gram(callback.index, model.eval(), ROWS).diagonal()
    assert float((callback.index.self_influence().double() - expected).abs().max() / expected.max()) < 1e-4
    assert model.config._experts_implementation == "grouped_mm"


def test_where_a_model_sorts_its_tokens_by_expert_rows_go_alone(tmp_path, caplog):
    torch.manual_seed(0)
    sizes = {"kv_channels": 8, "num_attention_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = AutoModelForCausalLM.from_config(JetMoeConfig(**{**SIZES, **sizes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    index = InfluenceIndex.build(model, ROWS, tmp_path / "index", config=GRADIENTS)
    assert relative_error(index, model, ROWS) < 1e-4
    assert sum(entry.kind == "stack" for entry in index.manifest.modules) == 8
    assert "cannot be told apart by example" in caplog.text and "one row at a time" in caplog.text


def test_documents_that_are_packed_into_rows(tmp_path):
    """A token's slots go with it to its document."""
    model = mixture("mixtral", "grouped_mm", max_position_embeddings=64)
    documents = [row["input_ids"] for row in rows_of((6, 3, 7, 2, 8, 4, 5))]
    packs = [documents[:3], documents[3:5], documents[5:]]
    rows = [
        {"input_ids": [token for ids in pack for token in ids], "seq_lengths": [len(ids) for ids in pack]}
        for pack in packs
    ]
    index = InfluenceIndex.build(model, Dataset.from_list(rows), tmp_path / "index", config=GRADIENTS, batch_size=2)
    expected = gram(index, model, [{"input_ids": ids} for ids in documents]).diagonal()
    assert len(index) == 7 and index.manifest.objective == "causal-lm"
    assert float((index.self_influence().double() - expected).abs().max() / expected.max()) < 1e-4
