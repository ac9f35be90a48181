"""Every task is asked in its own form: a training row finds itself, alone, in a batch and token by token."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from recordings import train_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForTokenClassification,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import QueryError


TOKENIZER = train_tokenizer()
TOKENIZER.mask_token = "<|system|>"
TEXTS = ["The capital of France is", "Which training examples", "made my model say"]
IDS = [TOKENIZER(text)["input_ids"] for text in TEXTS]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
COSINES = InfluenceConfig.grad_cos(projection_factor=1, dtype="float32")


def masked(ids):
    return {"input_ids": [ids[0], TOKENIZER.mask_token_id, *ids[2:]], "labels": [-100, ids[1], *[-100] * len(ids[2:])]}


def translation():
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    rows = [{"input_ids": ids, "labels": target} for ids, target in zip(IDS, IDS[::-1], strict=True)]
    return model, rows, (TEXTS[0], TEXTS[2]), 0


def masked_lm():
    return BertForMaskedLM(BertConfig(vocab_size=320, **SIZES)), [masked(ids) for ids in IDS], None, 0


def token_classes():
    model = BertForTokenClassification(BertConfig(vocab_size=320, num_labels=3, **SIZES))
    rows = [{"input_ids": ids, "labels": [place % 3 for place in range(len(ids))]} for ids in IDS]
    return model, rows, None, 0


def choices():
    model = BertForMultipleChoice(BertConfig(vocab_size=320, **SIZES))
    rows = [{"input_ids": [[5, 6, 7 + row], [8, 9, 10]], "labels": row % 2} for row in range(3)]
    return model, rows, None, None


def pictures_and_text():
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **SIZES)
    language = LlamaConfig(vocab_size=320, **SIZES)
    config = LlavaConfig(vision_config=vision, text_config=language, image_token_index=5, vision_feature_layer=-1)
    rows = [
        {
            "input_ids": [1, 5, 5, 5, 5, 7 + row, 9],
            "labels": [-100] * 5 + [7 + row, 9],
            "pixel_values": np.random.default_rng(row).random((3, 8, 8)).astype("float32").tolist(),
        }
        for row in range(3)
    ]
    return LlavaForConditionalGeneration(config), rows, None, 0


@pytest.fixture(
    scope="module",
    params=[translation, masked_lm, token_classes, choices, pictures_and_text],
    ids=lambda f: f.__name__,
)
def asked(request, tmp_path_factory):
    torch.manual_seed(0)
    model, rows, written, tokens = request.param()
    folder = tmp_path_factory.mktemp(request.param.__name__) / "index"
    index = InfluenceIndex.build(
        model.eval(), Dataset.from_list(rows), folder, config=COSINES, processing_class=TOKENIZER
    )
    return model, rows, written, tokens, index


def test_a_training_row_finds_itself(asked):
    model, rows, written, _, index = asked
    batch = {key: torch.tensor([rows[1][key]]) for key in rows[1]}
    for queries, expected in [(Dataset.from_list(rows), [0, 1, 2]), (rows, [0, 1, 2]), (batch, [1])]:
        result = index.attribute(model, queries, top_k=1)
        assert result.indices[:, 0].tolist() == expected and float(result.scores.min()) > 0.999
    if written is not None:
        assert index.attribute(model, written, top_k=1).indices.tolist() == [[0]]


def test_a_query_does_not_depend_on_its_batch(asked):
    model, rows, _, _, index = asked
    alone = torch.cat([index.scores(model, row) for row in rows])
    torch.testing.assert_close(index.scores(model, rows, batch_size=3), alone, rtol=1e-4, atol=1e-5)


def test_its_tokens_are_asked_where_it_has_some(asked):
    model, rows, _, tokens, index = asked
    if tokens is None:
        with pytest.raises(QueryError, match="The loss of query 0 is no sum over tokens"):
            index.scores(model, rows, per_token=True)
        return
    by_token = index.attribute(model, rows, top_k=1, per_token=True)
    counts = [sum(label != -100 for label in row["labels"]) for row in rows]
    assert [len(texts) for texts in by_token.tokens] == counts and by_token.scores.shape == (3, max(counts), 1)
    assert by_token.losses == pytest.approx(index.attribute(model, rows).losses, rel=1e-4)
