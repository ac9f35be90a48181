"""Queries are held thin where their tokens let them be, and score the same."""

import pytest
import torch
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature.encoding import Encoder
from lorif_hf.querying import preconditioning
from lorif_hf.querying.measure import Measurement


PAIRS = [
    {"prompt_ids": [3, 4], "chosen_ids": [5, 6, 7], "rejected_ids": [8]},
    {"prompt_ids": [9], "chosen_ids": [5, 2], "rejected_ids": [1, 7, 3, 6]},
]
CASES = {
    "the default": ({}, {}),
    "four bits": ({"factor_rank": 8, "bits": 4}, {}),
    "not whitened": ({"whitening": "none", "curvature": "none"}, {}),
    "whitened and filled up": ({"curvature": "low-rank"}, {}),
    "cut": ({"curvature": "low-rank", "factorize_query": True}, {}),
    "divided by its norm": ({"normalize": True}, {}),
    "margin": ({"output": "margin"}, {}),
    "the mean": ({}, {"reduce": "mean"}),
    "the mean, in several batches": ({}, {"reduce": "mean", "batch_size": 4}),
    "token by token": ({}, {"per_token": True}),
    "some layers": ({}, {"modules": ["mlp.c_fc"]}),
}


@pytest.fixture(scope="module")
def model():
    return make_gpt2(width=48)


def asked(index, model, queries, **options):
    """The scores, and the groups of queries that they are of."""
    groups = []
    real = Measurement._measured

    def seen(self, *given):
        measured = real(self, *given)
        groups.extend(group for held in measured.preconditioned.values() for group in held)
        return measured

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Measurement, "_measured", seen)
        return index.scores(model, queries, **options), groups


@pytest.mark.parametrize(("choices", "options"), CASES.values(), ids=CASES)
def test_queries_made_of_their_tokens_score_as_those_that_are_formed(tmp_path, monkeypatch, model, choices, options):
    rows, config = make_rows(30), InfluenceConfig(shard_size=8, **choices)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    scores, groups = asked(index, model, rows.select(range(6)), **options)
    if not {"curvature", "normalize"} & choices.keys() and "reduce" not in options:
        assert groups and all(group.right is not None and group.left.shape[1] <= 15 for group in groups)
    monkeypatch.setattr(Encoder, "query_reductions", lambda self: {})
    monkeypatch.setattr(preconditioning, "widest_rank", lambda *sizes: 0)
    expected, groups = asked(index, model, rows.select(range(6)), **options)
    assert all(group.right is None for group in groups)
    assert (scores - expected).nan_to_num().norm() <= 1e-4 * expected.nan_to_num().norm()
    assert torch.equal(scores.isnan(), expected.isnan())


def test_pairs_are_the_tokens_of_both(tmp_path, monkeypatch, model):
    index = InfluenceIndex.build(model, make_rows(30), tmp_path / "index")
    scores, groups = asked(index, model, PAIRS)
    assert all(group.right is not None for group in groups)
    assert {group.left.shape[1] for group in groups} == {8}
    parts = [
        index.scores(model, {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[which]}, measure="log_prob")
        for pair in PAIRS
        for which in ("chosen_ids", "rejected_ids")
    ]
    expected = torch.cat([parts[0] - parts[1], parts[2] - parts[3]])
    assert (scores - expected).norm() <= 1e-4 * expected.norm()


def test_a_query_of_more_tokens_than_are_worth_it_is_held_whole(tmp_path, monkeypatch, model):
    rows = make_rows(30)
    index = InfluenceIndex.build(model, rows, tmp_path / "index")
    expected = index.scores(model, rows.select(range(6)))
    monkeypatch.setattr(preconditioning, "widest_rank", lambda *sizes: 8)
    scores, groups = asked(index, model, rows.select(range(6)))
    assert {group.right is None for group in groups} == {True, False}
    assert (scores - expected).norm() <= 1e-4 * expected.norm()


def test_what_the_first_pass_kept_is_read_once(tmp_path, monkeypatch, model):
    """By all queries of an index and its selections; a layer that is not asked for is not read."""
    rows = make_rows(30)
    InfluenceIndex.build(model, rows, tmp_path / "index")
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    first_pass, read = type(index._queried.curvature.first_pass), []
    real = first_pass.load
    monkeypatch.setattr(first_pass, "load", lambda *given: read.append(given[2].name) or real(*given))
    index.scores(model, rows.select([0]), modules=["h.0.mlp.c_fc"])
    assert read == ["transformer.h.0.mlp.c_fc"]
    for _ in range(2):
        index.scores(model, rows.select([0, 1]))
        index.select([3, 4]).scores(model, rows.select([0]))
    assert sorted(read) == sorted(entry.name for entry in index.manifest.modules)
