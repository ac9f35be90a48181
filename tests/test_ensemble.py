"""Scores averaged over checkpoints: the products and the weights apart."""

import pytest
import torch
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex, ensemble_scores
from lorif_hf.errors import QueryError


CONFIG = InfluenceConfig.trak(projection_dim=32, dtype="float32", shard_size=7)


def build(tmp_path, seed, rows=None):
    model, rows = make_gpt2(seed), make_rows(12) if rows is None else rows
    return model, InfluenceIndex.build(model, rows, tmp_path / f"index-{seed}-{len(rows)}", config=CONFIG)


def test_products_and_weights_are_averaged_apart(tmp_path):
    models, indices = zip(*(build(tmp_path, seed) for seed in range(3)), strict=True)
    queries = make_rows(4, seed=9)
    products = torch.stack(
        [index.scores(model, queries, weighted=False) for model, index in zip(models, indices, strict=True)]
    ).double()
    weights = torch.stack([index.example_weights() for index in indices]).double()
    expected = products.mean(dim=0) * weights.mean(dim=0)
    found = ensemble_scores(indices, models, queries)
    assert found.shape == (4, 12)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)
    mean_of_scores = torch.stack(
        [index.scores(model, queries) for model, index in zip(models, indices, strict=True)]
    ).mean(dim=0)
    assert not torch.allclose(found, mean_of_scores, rtol=1e-3)


def test_an_ensemble_of_one_is_the_index_itself(tmp_path):
    model, index = build(tmp_path, 0)
    queries = make_rows(2, seed=9)
    torch.testing.assert_close(ensemble_scores([index], [model], queries), index.scores(model, queries))
    chosen = index.select([3, 8])
    torch.testing.assert_close(
        ensemble_scores([chosen], [model], queries), index.scores(model, queries)[:, [3, 8]], rtol=1e-5, atol=1e-9
    )


def test_models_and_indices_must_belong_together(tmp_path):
    model, index = build(tmp_path, 0)
    with pytest.raises(QueryError) as caught:
        ensemble_scores([index], [model, model], make_rows(1))
    assert str(caught.value) == "Each index needs its model: got 1 indices and 2 models."
    with pytest.raises(QueryError, match="got 0 indices and 0 models"):
        ensemble_scores([], [], make_rows(1))
    other = build(tmp_path, 1, make_rows(12, seed=5))
    with pytest.raises(QueryError) as caught:
        ensemble_scores([index, other[1]], [model, other[0]], make_rows(1))
    assert str(caught.value) == (
        "The indices are of other rows: an ensemble is of one training set under several models."
    )
