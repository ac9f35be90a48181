"""Which tokens of a query are measured, and the same query measured on one of them."""

import pytest
import torch
from recordings import build
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lorif_hf.errors import QueryError
from lorif_hf.querying.query_tokens import measured_tokens, token_alone
from lorif_hf.tasks import task_of
from lorif_hf.tasks.base import losses_of
from lorif_hf.tasks.collation import PaddingCollator


@pytest.fixture(scope="module")
def causal():
    return build("llama")


@pytest.mark.parametrize("objective", [None, "model"])
@pytest.mark.parametrize(
    "feature, expected",
    [
        ({"input_ids": [5, 6, 7, 8]}, [1, 2, 3]),
        ({"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, -100]}, [2]),
        ({"input_ids": [5, 6, 7], "attention_mask": [0, 1, 1]}, [2]),
        ({"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([-100, 9, 9])}, [1, 2]),
    ],
    ids=["text", "labels", "left padding", "other labels"],
)
def test_the_measured_tokens_of_a_language_model(causal, objective, feature, expected):
    if "attention_mask" in feature and objective == "model":
        expected = [1, 2]  # the model's own loss is of what comes after padding too
    task = task_of(causal, objective)
    collator = PaddingCollator(0, make_labels=True)
    whole, positions = measured_tokens(feature, causal, task, collator, 0)
    assert positions == expected
    with torch.no_grad():
        parts = [losses_of(task, causal, collator([token_alone(whole, place)])) for place in positions]
        together = losses_of(task_of(causal, objective), causal, collator([feature]))
    assert float(sum(parts)) == pytest.approx(float(together), rel=1e-5)
    assert "labels" not in feature or len(feature["labels"]) == len(feature["input_ids"])


@pytest.mark.parametrize(
    "kind, feature",
    [
        ("bert-classifier", {"input_ids": [5, 6], "labels": 1}),
        ("bert-classifier", {"input_ids": [5, 6]}),
        ("bert-classifier", {"input_ids": [5, 6, 7], "labels": [1, 0, 1]}),
    ],
    ids=["one label", "no label", "several labels"],
)
def test_a_loss_that_is_no_sum_over_tokens_is_refused(kind, feature):
    model = build(kind)
    with pytest.raises(QueryError) as caught:
        measured_tokens(feature, model, task_of(model), PaddingCollator(0), 3)
    assert str(caught.value) == (
        "The loss of query 3 is no sum over tokens (objective 'sequence-classification'), so none of them can be "
        "asked alone: leave out per_token= and token=."
    )


def test_an_alignment_of_all_labels_is_no_sum_over_them():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    convolutions = {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (5,), "num_feat_extract_layers": 1}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=20, **sizes, **convolutions, **positions))
    feature = {"input_values": torch.ones(50), "labels": [3, 4]}
    with pytest.raises(QueryError, match="The loss of query 0 is no sum over tokens"):
        measured_tokens(feature, model, task_of(model, "model"), PaddingCollator(0), 0)


def test_a_query_without_a_measured_token_is_named(causal):
    feature = {"input_ids": [5, 6], "labels": [5, -100]}
    with pytest.raises(QueryError) as caught:
        measured_tokens(feature, causal, task_of(causal, "model"), PaddingCollator(0), 2)
    assert str(caught.value) == "Query 2 has no token to measure: each label is -100, or of a first token."


@pytest.mark.parametrize("kind", ["T5", "Whisper"])
def test_a_decoder_reads_all_labels_whichever_is_measured(kind):
    """It makes its inputs of the labels: masked ones would be another context."""
    torch.manual_seed(0)
    if kind == "T5":
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        model, inputs = T5ForConditionalGeneration(T5Config(vocab_size=20, **sizes)), {"input_ids": [5, 6, 7]}
    else:
        sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 4, "vocab_size": 20}
        ends = {"decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        limits = {"max_source_positions": 10, "max_target_positions": 10}
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **ends, **limits))
        inputs = {"input_features": torch.ones(4, 20)}
    feature, collator = {**inputs, "labels": [8, 9, 3, 4]}, PaddingCollator(0)
    for objective in (None, "model"):
        task = task_of(model.eval(), objective)
        whole, positions = measured_tokens(feature, model, task, collator, 0)
        with torch.no_grad():
            parts = [losses_of(task, model, collator([token_alone(whole, place)])) for place in positions]
            together = losses_of(task_of(model, objective), model, collator([feature]))
        assert positions == [0, 1, 2, 3]
        assert float(sum(parts)) == pytest.approx(float(together), rel=1e-5)
