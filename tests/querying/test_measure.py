"""What a query may be asked with: the right model, rows, modules and padding."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny import plain_config
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lorif_hf import InfluenceIndex
from lorif_hf.errors import IndexCorruptedError, NonFiniteGradientError, QueryError
from lorif_hf.querying import measure


def test_queries_are_padded_with_the_models_own_token(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=8,
        n_layer=1,
        n_head=2,
        num_labels=3,
        pad_token_id=5,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2ForSequenceClassification(config).eval()
    rows = Dataset.from_dict({"input_ids": [[6, 7, 8, 9], [0, 0, 7]], "label": [0, 2]})
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    together = index.scores(model, [{"input_ids": [0, 0, 7]}, {"input_ids": [6, 7, 8, 9, 10]}])
    assert torch.allclose(together[0], index.scores(model, {"input_ids": [0, 0, 7]})[0], rtol=1e-4)


def test_select_takes_row_numbers_alone(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    with pytest.raises(QueryError, match=r"takes row numbers, got torch.bool; of a mask take mask.nonzero"):
        index.select(torch.tensor([True, False, True]))
    with pytest.raises(QueryError, match="takes row numbers, got torch.float32"):
        index.select([1.5])
    with pytest.raises(QueryError, match="needs at least one row"):
        index.select([])
    with pytest.raises(QueryError, match="Row -1 is outside the index"):
        index.select([-1])


def test_a_module_that_the_files_do_not_hold_is_found_before_anything_is_measured(gpt2, rows, tmp_path, monkeypatch):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    monkeypatch.setattr(measure, "read_queries", lambda *args: pytest.fail("the files come first"))
    entries = index._queried.scored(None)
    index._queried.reader.layout = lambda d1, d2: {"u": (torch.float32, (d1, d2))}
    with pytest.raises(IndexCorruptedError, match=rf"'{entries[0].name}.u' is torch.uint8"):
        index.scores(gpt2, rows.select([0]))


def roberta(positions=18):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=50, max_position_embeddings=positions, type_vocab_size=1, num_labels=3, pad_token_id=1, **sizes
    )
    return RobertaForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A RoBERTa of 18 positions, 16 of which are for tokens, and an index of it."""
    rows = Dataset.from_dict({"input_ids": [[6, 7, 8, 9], [5] * 16], "label": [0, 2]})
    model = roberta()
    folder = tmp_path_factory.mktemp("roberta") / "index"
    return model, InfluenceIndex.build(model, rows, folder, config=plain_config())


def test_the_last_position_of_roberta_is_named(classified):
    model, index = classified
    index.scores(model, {"input_ids": [5] * 16})
    with pytest.raises(QueryError) as caught:
        index.attribute(model, [{"input_ids": [5]}, {"input_ids": [5] * 17}])
    assert str(caught.value) == "Query 1 has 17 tokens, the model takes at most 16: shorten it."


def test_a_recorded_row_longer_than_a_rotary_models_config_says_is_a_query(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=8, **sizes)).eval()
    rows = Dataset.from_dict({"input_ids": [[6, 7, 8, 9], list(range(1, 21))]})
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config())
    assert index.attribute(model, rows[1], top_k=1).indices.tolist() == [[1]]
    assert index.scores(model, rows).shape == (2, 2)


@pytest.mark.parametrize(
    "good, bad, reason",
    [
        ({"position_ids": [2, 3]}, {"position_ids": [1, 18]}, "RuntimeError: index 18 is out of bounds"),
        ({"labels": 1}, {"labels": [1, 2]}, "ValueError: "),
        ({"labels": 1}, {"labels": 0.5}, "RuntimeError: "),
        ({}, {"inputs_embeds": [[0.5] * 8] * 2}, "ValueError: You must specify exactly one of"),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_the_forward_pass_cannot_take_is_the_error_of_its_query(classified, good, bad, reason, batch_size):
    model, index = classified
    ids = {"input_ids": [5, 6]}
    before = index.scores(model, {**ids, **good})
    with pytest.raises(QueryError) as caught:
        index.scores(model, [{**ids, **good}, {**ids, **bad}, {**ids, **good}], batch_size=batch_size)
    assert str(caught.value).startswith(f"The model fails at query 1 of 2 tokens ({reason}")
    assert "shorten the query" in str(caught.value) and caught.value.__cause__ is not None
    assert torch.equal(index.scores(model, {**ids, **good}), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_queries_that_fail_together_alone_are_named_together(gpt2, rows, tmp_path):
    """A tokenizer that pads with a token beyond the vocabulary, say."""
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    queries = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]
    padding = SimpleNamespace(pad_token_id=99)
    index.scores(gpt2, queries, processing_class=padding, batch_size=1)
    with pytest.raises(QueryError, match=r"The model fails at queries 0, 1 together of 3 and 2 tokens \(IndexError: "):
        index.scores(gpt2, queries, processing_class=padding)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, KeyError, NonFiniteGradientError])
def test_an_error_that_is_no_querys_passes(gpt2, rows, tmp_path, monkeypatch, kind):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")

    def failing(*args):
        raise kind("lm_head", [0]) if kind is NonFiniteGradientError else kind("x")

    monkeypatch.setattr(measure.GradientRecorder, "record", failing)
    with pytest.raises(kind):
        index.scores(gpt2, rows.select([0, 1]))
