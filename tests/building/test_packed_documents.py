"""An index of packed rows without a Trainer: what the model makes of them, whatever model it is."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from packed import VOCABULARY, document_errors, model_of
from transformers import MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM
from truth import GRADIENTS

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building import builder
from lorif_hf.errors import DatasetError
from lorif_hf.recording.document_search import document_collator
from lorif_hf.recording.recorder import GradientRecorder


def documents(count=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 14, (count,), generator=generator).tolist()
    return [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


DOCUMENTS = documents()
PACKS = [DOCUMENTS[start : start + 4] for start in range(0, 14, 4)]


def rows_of(*columns):
    every = {
        "input_ids": [[token for ids in pack for token in ids] for pack in PACKS],
        "seq_lengths": [[len(ids) for ids in pack] for pack in PACKS],
        "position_ids": [[place for ids in pack for place in range(len(ids))] for pack in PACKS],
        "attention_mask": [[1 for ids in pack for _ in ids] for pack in PACKS],
        "labels": [[label for ids in pack for label in [-100, *ids[1:]]] for pack in PACKS],
    }
    return Dataset.from_dict({name: every[name] for name in ("input_ids", *columns)})


def opt():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "init_std": 0.3}
    return OPTForCausalLM(
        OPTConfig(vocab_size=VOCABULARY, max_position_embeddings=64, word_embed_proj_dim=16, **sizes)
    )


def mamba():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **sizes))


def errors_of(index, model, rows, collate=None):
    def loss(batch):
        return model(**batch, use_cache=False, num_items_in_batch=torch.tensor(1)).loss

    collate = collate or document_collator(rows, None)
    return max(document_errors(index, model, collate, rows, loss))


def whole(features):
    (feature,) = features
    return {name: torch.tensor([feature[name]]) for name in feature}


@pytest.mark.parametrize(
    "make, columns, objective",
    [
        (lambda: model_of("llama"), ["seq_lengths"], "causal-lm"),
        (lambda: model_of("gpt2"), ["position_ids", "labels"], "causal-lm"),
        (lambda: model_of("llama"), ["position_ids", "labels", "attention_mask"], "model"),
        (opt, ["seq_lengths"], "model"),
        (mamba, ["seq_lengths"], "model"),
    ],
    ids=["lengths", "positions", "a mask that joins documents", "OPT knows no positions", "a state that runs over"],
)
def test_the_gradient_is_autograds_within_the_packed_row(tmp_path, make, columns, objective):
    model, rows = make(), rows_of(*columns)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=GRADIENTS, batch_size=2)
    assert len(index) == 14 and index.manifest.objective == objective
    assert index.manifest.alone == (objective == "model")
    assert errors_of(index, model, rows, whole if "attention_mask" in columns else None) < 1e-5
    index.verify()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 8},
        {"max_tokens_per_batch": 60},
        {"max_tokens_per_batch": 1},
        {"check": False},
        {"objective": "causal-lm"},
        {"config": InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", shard_size=3)},
    ],
    ids=["a row", "all rows", "tokens", "a token", "unchecked", "named", "shards that cut rows"],
)
def test_whatever_goes_together_the_gradients_are_the_same(tmp_path, options):
    model, rows = model_of("llama"), rows_of("seq_lengths")
    index = InfluenceIndex.build(model, rows, tmp_path / "index", **{"config": GRADIENTS, **options})
    assert errors_of(index, model, rows) < 1e-5
    for example, ids in zip(index.examples(range(14)), DOCUMENTS, strict=True):
        assert example["num_tokens"] == len(ids)
        assert rows[example["source_row"]]["input_ids"][example["start"] : example["stop"]] == ids


def test_a_packed_row_that_does_not_fit_into_memory_is_taken_in_parts(tmp_path, monkeypatch):
    model, rows = model_of("llama"), rows_of("seq_lengths")
    record, tried = GradientRecorder.record, []

    def limited(self, batch, rows=None, counted=None):
        tried.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return record(self, batch, rows, counted)

    monkeypatch.setattr(GradientRecorder, "record", limited)
    options = {"config": GRADIENTS, "batch_size": 4, "auto_find_batch_size": True}
    index = InfluenceIndex.build(model, rows, tmp_path / "index", **options)
    # Four rows of up to four documents, two, one: then half of the documents of one.
    assert tried == [14, 8, 4, 2, 2, 2, 2, 2, 2, 1, 1] and errors_of(index, model, rows) < 1e-5


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    model, rows = model_of("llama"), rows_of("seq_lengths")
    config = InfluenceConfig(shard_size=3, seed=1)
    expected = InfluenceIndex.build(model, rows, tmp_path / "whole", config=config)
    write, written = builder.write_shard, []

    def stopped(path, *args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "write_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    assert [s.sha256 for s in index.manifest.shards] == [s.sha256 for s in expected.manifest.shards]
    assert index.manifest.build == expected.manifest.build and index.examples([9]) == expected.examples([9])


def test_another_layout_of_the_same_tokens_is_another_build(tmp_path):
    rows, other = rows_of("seq_lengths"), rows_of("seq_lengths")
    lengths = [[sum(pack[:2]), *pack[2:]] for pack in other["seq_lengths"]]
    other = other.remove_columns("seq_lengths").add_column("seq_lengths", lengths)
    one, two = (
        InfluenceIndex.build(model_of("llama"), given, tmp_path / str(i), config=GRADIENTS).manifest
        for i, given in enumerate((rows, other))
    )
    assert one.dataset["fingerprint"] != two.dataset["fingerprint"] and one.build != two.build


def test_the_default_config_ranks_a_document_first_for_itself(tmp_path):
    model, rows = model_of("llama"), rows_of("seq_lengths")
    index = InfluenceIndex.build(model, rows, tmp_path / "index")
    scores = index.scores(model, [{"input_ids": ids} for ids in DOCUMENTS])
    assert scores.argmax(dim=1).tolist() == list(range(14))


def test_margins_are_of_documents_too(tmp_path):
    model, rows = model_of("llama"), rows_of("seq_lengths")
    config = InfluenceConfig.trak(projection_dim=64)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    alone = [{"input_ids": ids, "labels": ids} for ids in DOCUMENTS]
    plain = InfluenceIndex.build(model, alone, tmp_path / "plain", config=config)
    torch.testing.assert_close(index.example_weights(), plain.example_weights(), rtol=1e-4, atol=1e-6)
    scores, expected = (each.scores(model, alone[:4]) for each in (index, plain))
    torch.testing.assert_close(scores, expected, rtol=2e-2, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("check", [True, False])
def test_a_loss_of_the_users_own_goes_document_by_document(tmp_path, check):
    def own(model, batch):
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].mT, batch["labels"][:, 1:], reduction="none").sum(dim=1)

    model, rows = model_of("llama"), rows_of("seq_lengths")
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=GRADIENTS, objective=own, check=check)
    assert index.manifest.alone and errors_of(index, model, rows) < 1e-5


def test_examples_are_of_documents_or_of_nothing(tmp_path, tokenizer):
    rows, model = rows_of("seq_lengths"), model_of("llama")
    named = Dataset.from_dict({"text": [f"document {i}" for i in range(14)], "id": list(range(14))})
    index = InfluenceIndex.build(model, rows, tmp_path / "named", config=GRADIENTS, examples=named)
    assert index.examples([5])[0]["text"] == "document 5" and index.examples([5])[0]["example_id"] == "5"
    packed = Dataset.from_dict({"text": ["all of it"] * 4})
    index = InfluenceIndex.build(model, rows, tmp_path / "rows", config=GRADIENTS, examples=packed)
    assert index.examples([5])[0]["text"] is None  # without a tokenizer nothing tells what a document says
    with pytest.raises(DatasetError, match="examples has 9 rows, and the 4 packed rows of the dataset hold 14 docum"):
        InfluenceIndex.build(model, rows, tmp_path / "wrong", examples=named.select(range(9)))


def test_in_16_bits_neighbours_are_told_from_rounding(tmp_path, caplog):
    """Attention that leaks by less than bfloat16 rounds between a batch and a row alone."""
    model, rows = model_of("llama").bfloat16(), rows_of("seq_lengths")
    index = InfluenceIndex.build(model, rows, tmp_path / "apart", config=GRADIENTS)
    assert index.manifest.objective == "causal-lm" and not index.manifest.alone
    layer = model.model.layers[0]

    def leak(module, args, output):
        return output + 0.01 * output.cumsum(dim=1).roll(1, dims=1)

    layer.mlp.register_forward_hook(leak)
    index = InfluenceIndex.build(model, rows, tmp_path / "leaking", config=GRADIENTS)
    assert index.manifest.objective == "model" and index.manifest.alone
    assert "among other documents of its sequence: they see each other" in caplog.text
