"""What single tokens add to a score: the sums are scores, of the index and of the row's whole gradient."""

import logging

import pytest
import torch
from datasets import Dataset
from dense import make_classifier
from tiny import make_gpt2
from transformers import BertConfig, BertForSequenceClassification

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import QueryError
from lorif_hf.querying.token_shares import aligned


EXACT = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")
QUERIES = ["5 6 7 8", ("1 2 3", " 4 9")]


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (12,), generator=generator).tolist()
    return [" ".join(map(str, torch.randint(11, 20, (length,), generator=generator).tolist())) for length in lengths]


def built(path, tokenizer, texts, config, model=None, **columns):
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts], "text": texts, **columns})
    model = model or make_gpt2()
    return model, InfluenceIndex.build(model, rows, path / "index", config=config, processing_class=tokenizer)


CONFIGS = {
    "stored whole": EXACT,
    "whitened, whole": InfluenceConfig(factor_rank=12, bits=16),
    "margins, weighted": InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", output="margin"),
    "an eigenbasis": InfluenceConfig(curvature="low-rank", whitening="none", factor_rank=12, bits=16),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_tokens_add_up_to_the_scores(tmp_path, tokenizer, texts, config):
    model, index = built(tmp_path, tokenizer, texts, config)
    result = index.attribute(model, QUERIES, top_k=2, opponents=1, shade=True)
    scores, shading = index.scores(model, QUERIES), result.shading
    assert shading.query_tokens == [["6", "7", "8"], ["4", "9"]]
    assert shading.query_shares.keys() == shading.row_shares.keys() and len(shading.row_shares) == 6
    for pair, shares in shading.row_shares.items():
        row = pair[1]
        assert "".join(shading.row_tokens[row]) == texts[row] and len(shares) == len(texts[row].split())
        assert sum(shares) == pytest.approx(float(scores[pair]), rel=0.05, abs=0.05)  # of what is stored in bfloat16
        assert sum(shading.query_shares[pair]) == pytest.approx(float(scores[pair]), rel=1e-3, abs=1e-4)


def test_a_tokens_share_is_that_of_its_own_part_of_the_gradient(tmp_path, tokenizer, texts):
    """Against autograd: of a layer's weight gradient, x_t dy_t of one token at a time."""
    model, index = built(tmp_path, tokenizer, texts, EXACT)
    name = "transformer.h.1.mlp.c_fc"
    result = index.attribute(model, QUERIES[0], top_k=1, shade=True, modules=[name])
    ((pair, shares),) = result.shading.row_shares.items()
    module, seen = model.get_submodule(name), {}

    def gradient_of(text):
        def hook(module, args, output):
            seen["x"] = args[0][0].detach()
            output.register_hook(lambda gradient: seen.update(dy=gradient[0]))

        ids = torch.tensor([tokenizer(text)["input_ids"]])
        handle = module.register_forward_hook(hook)
        logits = model(ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
        handle.remove()
        return seen["x"], seen["dy"]

    x, dy = gradient_of(QUERIES[0])
    query = x.T @ dy
    x, dy = gradient_of(texts[pair[1]])
    torch.testing.assert_close(torch.tensor(shares), ((x @ query) * dy).sum(dim=1), rtol=1e-4, atol=1e-5)


def test_rows_that_cannot_be_made_again_are_left_out(tmp_path, tokenizer, texts, caplog):
    labels = [[-100, *tokenizer(text)["input_ids"][1:]] for text in texts]
    labels[4] = [-100] * (len(labels[4]) - 1) + labels[4][-1:]  # measured on its last token alone
    texts[5] = None
    rows = Dataset.from_dict(
        {
            "input_ids": [tokenizer(t or "7 8 9")["input_ids"] for t in texts],
            "labels": [*labels[:5], [-100, 8, 9], *labels[6:]],
            "text": texts,
        }
    )
    model = make_gpt2()
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=EXACT, processing_class=tokenizer)
    with caplog.at_level(logging.WARNING, "lorif_hf"):
        shading = index.attribute(model, QUERIES[:1], top_k=12, shade=True).shading
    assert shading.row_tokens.keys() == set(range(12)) - {4, 5}
    assert "2 of 12 rows are not shaded, the first is row 4" in caplog.text
    assert len(shading.query_shares) == 12  # which need no text


@pytest.mark.parametrize("pooled", [False, True])
def test_a_layer_that_sees_no_tokens_is_told_apart(tmp_path, tokenizer, texts, pooled):
    """What a pooler adds stands behind the tokens. The row's label is a column of its example."""
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, pad_token_id=0, **sizes)
    model = BertForSequenceClassification(bert) if pooled else make_classifier()
    model, index = built(tmp_path, tokenizer, texts, EXACT, model, label=[row % 2 for row in range(12)])
    result = index.attribute(model, [("5 6 7", 1)], top_k=2, shade=True)
    assert result.shading.query_tokens == [[]] and not result.shading.query_shares
    for (_, row), shares in result.shading.row_shares.items():
        assert len(shares) == len(texts[row].split()) + pooled
        assert result.shading.row_tokens[row] == [*aligned(texts[row], texts[row].split()), *[""] * pooled]
        assert sum(shares) == pytest.approx(float(result.scores[result.indices == row][0]), rel=1e-3)
    assert len(result.shading.row_shares) == 2


def test_scores_that_are_no_sums_are_refused(tmp_path, tokenizer, texts):
    config = InfluenceConfig.grad_cos(projection_factor=1, dtype="float32")
    model, index = built(tmp_path, tokenizer, texts, config)
    with pytest.raises(QueryError, match=r"divides gradients by their norm \(normalize\).* leave out shade="):
        index.attribute(model, QUERIES, shade=True)


@pytest.mark.parametrize(
    "text, tokens, expected",
    [
        ("The capital.", ["<s>", "The", "capital", "."], ["<s>", "The", " capital", "."]),
        ("a  b", [" a", " b"], ["a", "  b"]),
        ("ab", ["a", "x", "b"], ["a", "x", "b"]),
        ("a b", ["a", " ", "b"], ["a", " ", "b"]),
        ("", ["a"], ["a"]),
        ("\ufffd", ["\ufffd", "\ufffd"], ["\ufffd", "\ufffd"]),
    ],
)
def test_tokens_take_the_white_space_of_their_text(text, tokens, expected):
    assert aligned(text, tokens) == expected
