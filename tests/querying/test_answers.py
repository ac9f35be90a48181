"""The best rows are the first of all scores; those of tokens add up to their query's."""

import numpy as np
import pytest
import torch
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.querying.answers import RowRanker, best_of
from lorif_hf.querying.options import QueryOptions


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("choices", [{}, {"output": "margin"}, {"factor_rank": 2, "bits": 4}], ids=str)
def test_the_best_are_the_first_of_all_scores(tmp_path, choices, largest):
    model, rows = make_gpt2(width=24), make_rows(60)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=InfluenceConfig(shard_size=25, **choices))
    queries = make_rows(4, seed=3)
    for asked, numbers in ((index, torch.arange(60)), (index.select(range(3, 60, 2)), torch.arange(3, 60, 2))):
        best = asked.attribute(model, queries, top_k=3, largest=largest)
        scores, columns = asked.scores(model, queries).sort(dim=1, descending=largest, stable=True)
        assert torch.equal(best.indices, numbers[columns[:, :3]])
        torch.testing.assert_close(best.scores, scores[:, :3], rtol=1e-5, atol=1e-6)


CONFIGS = {
    "plain": InfluenceConfig.grad_dot(projection_factor=1, dtype="float32"),
    "whitened": InfluenceConfig(factor_rank=4, bits=4, shard_size=7),
    "margin": InfluenceConfig(output="margin"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def indexed(request, tmp_path_factory):
    model, rows = make_gpt2(), make_rows(20)
    folder = tmp_path_factory.mktemp("indexed") / "index"
    return model, InfluenceIndex.build(model, rows, folder, config=CONFIGS[request.param]), make_rows(3, seed=5)


def token_by_token(index, model, ids, masked=0):
    """A query for each token, by labels of its own: the slow, obvious way. (T, N)"""
    rows = []
    for place in range(max(1, masked), len(ids)):
        labels = [-100] * len(ids)
        labels[place] = ids[place]
        rows.append(index.scores(model, {"input_ids": ids, "labels": labels})[0])
    return torch.stack(rows)


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))


@pytest.mark.parametrize("batch_size", [3, 64])
def test_the_scores_of_tokens_are_those_of_a_query_for_each(indexed, batch_size):
    model, index, queries = indexed
    scores = index.scores(model, queries, per_token=True, batch_size=batch_size)
    lengths = [len(row["input_ids"]) - 1 for row in queries]
    assert scores.shape == (3, max(lengths), 20)
    for query, length in enumerate(lengths):
        close(scores[query, :length], token_by_token(index, model, queries[query]["input_ids"]))
        assert bool(scores[query, length:].isnan().all())


def test_the_scores_of_tokens_add_up_to_the_querys(indexed):
    model, index, queries = indexed
    close(index.scores(model, queries, per_token=True).nansum(dim=1), index.scores(model, queries))


def test_layer_by_layer_they_add_up_to_the_tokens(indexed):
    model, index, queries = indexed
    parts = index.scores(model, queries, per_token=True, per_module=True)
    whole = index.scores(model, queries, per_token=True)
    close(sum(part.nan_to_num() for part in parts.values()), whole.nan_to_num())


@pytest.mark.parametrize("largest", [True, False])
def test_the_best_rows_of_each_token_are_the_first_of_its_scores(indexed, largest):
    model, index, queries = indexed
    ids = queries[1]["input_ids"]
    pair = {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
    best = index.attribute(model, [queries[0], pair], top_k=4, per_token=True, largest=largest, batch_size=2)
    scores = index.scores(model, [queries[0], pair], per_token=True)
    assert best.scores.shape == (2, scores.shape[1], 4) and best.indices.shape == best.scores.shape
    assert [len(tokens) for tokens in best.tokens] == [len(queries[0]["input_ids"]) - 1, len(ids) - 2]
    assert best.tokens[1] == [str(token) for token in ids[2:]]
    for query, tokens in enumerate(best.tokens):
        expected = scores[query, : len(tokens)].sort(dim=1, descending=largest, stable=True)
        close(best.scores[query, : len(tokens)], expected.values[:, :4])
        assert bool(best.scores[query, len(tokens) :].isnan().all())
        assert bool((best.indices[query, len(tokens) :] == -1).all())
        assert bool((best.indices[query, : len(tokens)] >= 0).all())
    whole = index.attribute(model, [queries[0], pair])
    assert best.losses == pytest.approx(whole.losses, rel=1e-5)


def test_of_a_selection_tokens_are_scored_against_its_rows_alone(indexed):
    model, index, queries = indexed
    chosen = index.select([3, 8, 15])
    close(
        chosen.scores(model, queries[:1], per_token=True).nan_to_num(),
        index.scores(model, queries[:1], per_token=True)[..., [3, 8, 15]].nan_to_num(),
    )
    best = chosen.attribute(model, queries[0], top_k=10, per_token=True)
    assert best.indices.shape[-1] == 3 and set(best.indices.flatten().tolist()) == {3, 8, 15}


@pytest.mark.parametrize("token", [0, 1, -1])
def test_one_token_alone_is_that_of_all_tokens(indexed, token):
    model, index, queries = indexed
    ids = queries[2]["input_ids"]
    scores = index.scores(model, queries[2:3], token=token)
    close(scores[0], index.scores(model, {"input_ids": ids}, per_token=True)[0, token])
    assert index.attribute(model, queries[2:3], token=token, top_k=2).scores.shape == (1, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_mean_of_queries_scores_their_mean(indexed, batch_size):
    model, index, _ = indexed
    queries = make_rows(7, seed=9)
    mean = index.scores(model, queries, reduce="mean", batch_size=batch_size)
    assert mean.shape == (1, 20)
    close(mean[0], index.scores(model, queries).mean(dim=0))
    result = index.attribute(model, queries, top_k=3, reduce="mean", batch_size=batch_size)
    assert result.scores.shape == (1, 3) and len(result) == 1 and result.tokens is None
    assert result.queries[0].startswith("the mean of 7 queries, the first of which is: ")
    assert result.losses == pytest.approx([sum(index.attribute(model, queries).losses) / 7], rel=1e-5)


def test_the_mean_of_a_cosine_index_is_divided_by_its_own_norm(gpt2, rows, tmp_path):
    """Not a mean of cosines: the cosine with the mean gradient, which is what training on the benchmark follows."""
    index = InfluenceIndex.build(
        gpt2, rows, tmp_path / "cos", config=InfluenceConfig.grad_cos(projection_factor=1, dtype="float32")
    )
    dot = InfluenceIndex.build(gpt2, rows, tmp_path / "dot", config=CONFIGS["plain"])
    queries = make_rows(5, seed=3)
    norms = dot.self_influence().float().sqrt()
    plain = dot.scores(gpt2, queries, reduce="mean")[0] / norms
    cosine = index.scores(gpt2, queries, reduce="mean")[0]
    torch.testing.assert_close(cosine / cosine.norm(), plain / plain.norm(), rtol=1e-4, atol=1e-5)
    assert index.scores(gpt2, rows.select([4]), reduce="mean")[0].argmax() == 4


def test_a_token_more_than_memory_holds_is_never_held(gpt2, rows, tmp_path, monkeypatch):
    """At most `batch_size` tokens' gradients are there at a time, whatever the length of the query."""
    from lorif_hf.querying import preconditioning

    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIGS["plain"])
    held, made = [], preconditioning.Preconditioner.__init__

    def counting(self, owner, scored, queries, *placed):
        held.append(queries)
        made(self, owner, scored, queries, *placed)

    monkeypatch.setattr(preconditioning.Preconditioner, "__init__", counting)
    index.attribute(gpt2, {"input_ids": list(range(1, 16))}, per_token=True, batch_size=4)
    assert held == [4, 4, 4, 2]
    held.clear()
    index.attribute(gpt2, rows, reduce="mean", batch_size=4)
    assert held == [1]


@pytest.mark.parametrize("largest", [True, False])
def test_the_best_of_dense_scores_are_those_of_a_scan(indexed, largest):
    """As an ensemble ranks what it has summed."""
    model, index, queries = indexed
    best = index.attribute(model, queries, top_k=3, per_token=True, largest=largest)
    dense = best_of(index.scores(model, queries, per_token=True), 3, largest, best.tokens)
    assert torch.equal(dense.indices, best.indices)
    torch.testing.assert_close(dense.scores, best.scores, equal_nan=True, rtol=1e-4, atol=1e-6)
    plain = best_of(index.scores(model, queries), 30, largest, None)
    assert plain.scores.shape == (3, 20)
    assert torch.equal(plain.indices, index.attribute(model, queries, top_k=30, largest=largest).indices)


def test_documents_of_tokens_are_ranked_by_the_sum_of_their_pieces(indexed):
    model, index, queries = indexed
    asked = index._asked(model, queries[:1], QueryOptions(per_token=True))
    documents = np.array([float(row // 4) for row in range(20)])
    best = RowRanker(asked, documents=documents).best(2)
    sums = index.scores(model, queries[:1], per_token=True)[0].view(-1, 5, 4).sum(dim=2)
    torch.testing.assert_close(best.scores[0], sums.topk(2, dim=1).values, rtol=1e-4, atol=1e-5)
    assert torch.equal(best.indices[0] // 4, sums.topk(2, dim=1).indices)
    assert all(pieces == list(range(row // 4 * 4, row // 4 * 4 + 4)) for row, pieces in best.pieces.items())
