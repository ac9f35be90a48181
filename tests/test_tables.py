"""Indices of embeddings, whole: against explicit token sums, diagonals and inverses in float64."""

import logging

import pytest
import torch
from datasets import Dataset
from kinds import VOCABULARY, bert, built, llama, rows_of
from projections import rademacher
from safetensors.torch import load_file
from tampering import edit_tensors
from transformers import BertForMaskedLM, T5Config, T5ForConditionalGeneration
from truth import own_sum

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage.layout import CURVATURE


EMBEDDINGS = {"target_modules": ["embed_tokens"], "dtype": "float32"}
DENSE = InfluenceConfig(factor_rank=None, bits=16, whitening_damping=0.2, **EMBEDDINGS)


def uses_of(model, row):
    """Of a row in float64: the sides x (T, V) and dy (T, H) of the embedding's lookups, and of a head that shares its
    weight, of tokens with a gradient alone; and the gradient of the weight, V x H."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    seen = {}
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
        for name, module in (("lookup", table), ("head", head))
    ]
    loss = own_sum(model, row)
    (ids, looked_up), (hidden, logits) = seen["lookup"], seen["head"]
    to_table, to_logits, whole = torch.autograd.grad(loss, [looked_up, logits, table.weight])
    for handle in handles:
        handle.remove()
    one_hot = torch.nn.functional.one_hot(ids[0], len(table.weight)).double()
    uses = [(one_hot, to_table[0])]
    if head.weight is table.weight:
        uses.append((to_logits[0], hidden.detach()[0]))
    kept = [(x.abs().sum(dim=1) * dy.abs().sum(dim=1) > 1e-12) for x, dy in uses]
    return [(x[rows], dy[rows]) for (x, dy), rows in zip(uses, kept, strict=True)], whole


def whitened_scores(model, rows, config):
    """Inner products of the rows' embedding gradients under the Kronecker curvature with a diagonal A, float64."""
    model = model.double()
    parts = [uses_of(model, row) for row in rows]
    model.float()
    moments = []
    for use in range(len(parts[0][0])):
        x, dy = (torch.cat([uses[use][side] for uses, _ in parts]) for side in (0, 1))
        moments.append((x.square().mean(dim=0), dy.T @ dy))
    a, s = moments[0]
    if len(moments) > 1:
        b, t = moments[1]
        ratio = (a.sum() * t.trace() / (b.sum() * s.trace())).sqrt()
        a, s = a + ratio * b, s + t / ratio
    a = a + config.whitening_damping * a.mean()
    s = s + config.whitening_damping * s.diagonal().mean() * torch.eye(len(s)).double()
    values, vectors = torch.linalg.eigh(s)
    whole = torch.stack([gradient for _, gradient in parts])
    signs = rademacher(VOCABULARY, 16, seed=0, name="model.embed_tokens/in").double()
    stored = signs.T @ (a.rsqrt().unsqueeze(1) * whole) @ ((vectors * values.rsqrt()) @ vectors.T)
    return torch.einsum("qde,nde->qn", stored, stored)


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_a_diagonal_and_of_the_other_sides_moment(tmp_path, tied):
    model, rows = llama(tie_word_embeddings=tied), rows_of((6, 3, 7, 2, 8, 4, 5, 9))
    index = built(model, rows, tmp_path, DENSE, batch_size=3)
    (entry,) = index.manifest.modules
    assert (entry.kind, entry.in_features, entry.d1, entry.d2) == ("embedding", VOCABULARY, 16, 16)
    assert {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "index" / CURVATURE).items()} == {
        "model.embed_tokens.in_scale": (VOCABULARY,),
        "model.embed_tokens.out_whitener": (16, 16),
    }
    expected = whitened_scores(model, rows, DENSE)
    scores = index.scores(model, rows).double()
    assert float((scores - expected).abs().max() / expected.abs().max()) < 1e-4
    assert scores.argmax(dim=1).tolist() == list(range(len(rows)))
    index.verify()


def test_a_row_has_the_scores_of_itself_alone(tmp_path):
    model, rows = llama(tie_word_embeddings=True), rows_of((6, 3, 7, 2))
    together = built(model, rows, tmp_path, DENSE, batch_size=4).scores(model, rows)
    others = InfluenceIndex.build(model, rows, tmp_path / "alone", config=DENSE, batch_size=1)
    torch.testing.assert_close(together, others.scores(model, rows, batch_size=1), rtol=1e-4, atol=1e-4)


def test_packed_documents_are_recorded_as_those_alone(tmp_path):
    """Positions start anew in each document, and the head sees no other: the same gradients, moments and scores."""
    model, rows = llama(tie_word_embeddings=True), rows_of((6, 3, 7, 2, 5, 4))
    packs = [rows[:3], rows[3:]]
    packed = Dataset.from_dict(
        {
            "input_ids": [[token for row in pack for token in row["input_ids"]] for pack in packs],
            "seq_lengths": [[len(row["input_ids"]) for row in pack] for pack in packs],
        }
    )
    index, other = (built(model, given, tmp_path / str(len(given)), DENSE, batch_size=2) for given in (packed, rows))
    assert len(index) == len(other) == 6
    torch.testing.assert_close(index.scores(model, rows), other.scores(model, rows), rtol=1e-4, atol=1e-4)


CONFIGS = {
    "default": InfluenceConfig(target_modules="all"),
    "low rank": InfluenceConfig.paper(target_modules="all", projection_factor=2),
    "normalised": InfluenceConfig.grad_cos(target_modules="all"),
    "all layers together": InfluenceConfig.trak(target_modules="all", projection_dim=64, output="loss"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_under_every_config_a_row_finds_itself_and_the_model_stays(tmp_path, config, kind):
    model = llama(tie_word_embeddings=True) if kind == "llama" else bert(BertForMaskedLM)
    rows = [row | {"labels": row["input_ids"]} for row in rows_of((9, 5, 7, 6, 8, 4))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    index = built(model, rows, tmp_path, config, batch_size=3)
    assert sum(entry.kind == "embedding" for entry in index.manifest.modules) == (1 if kind == "llama" else 3)
    assert index.scores(model, rows).argmax(dim=1).tolist() == list(range(6))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_table_of_distances_has_all_rows_recorded_alone_which_is_told(tmp_path, caplog):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=VOCABULARY, **sizes, decoder_start_token_id=0, pad_token_id=0)
    model, rows = T5ForConditionalGeneration(config), rows_of((6, 3, 7, 2))
    rows = [row | {"labels": row["input_ids"][::-1]} for row in rows]
    with caplog.at_level(logging.WARNING):
        index = built(model, rows, tmp_path, InfluenceConfig(target_modules="all"))
    assert index.manifest.alone
    left_out = {parameter.name for parameter in index.coverage.untracked}
    assert not [name for name in left_out if "layer_norm" not in name]
    assert index.scores(model, rows).argmax(dim=1).tolist() == list(range(4))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(VOCABULARY + 1), r"'model.embed_tokens.in_scale' is torch.float32 \(41,\), the manifest makes it"),
        (torch.ones(VOCABULARY, VOCABULARY), r"\(40, 40\), the manifest makes it torch.float32 \(40,\)"),
        (-torch.ones(VOCABULARY), "numbers below 0"),
    ],
    ids=["a row too many", "a matrix", "negative"],
)
def test_a_scale_that_cannot_be_is_refused(tmp_path, scale, message):
    model, rows = llama(tie_word_embeddings=True), rows_of((6, 3, 7))
    built(model, rows, tmp_path, DENSE)
    edit_tensors(tmp_path / "index", CURVATURE, lambda tensors: tensors.update({"model.embed_tokens.in_scale": scale}))
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    for ask in (lambda: index.attribute(model, rows[0]), index.verify):
        with pytest.raises(IndexCorruptedError, match=message):
            ask()
