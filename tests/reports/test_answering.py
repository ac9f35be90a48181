"""An answer of a real index: both ends, distinct rows, layers, tokens; each beside what `scores` says of all rows."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import QueryError
from lorif_hf.querying.answers import RowRanker
from lorif_hf.querying.options import QueryOptions
from lorif_hf.reports.answering import AnswerOptions, layers_of, shown_rows


CONFIG = InfluenceConfig(factor_rank=2, bits=4, shard_size=7)
TEXTS = [f"the quick brown fox jumps over the lazy dog number {row // 3}" for row in range(20)]
TEXTS[3] = "The quick, brown fox JUMPS over the lazy dog: number 1!"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    model, rows = make_gpt2(), make_rows(20)
    rows = rows.remove_columns("text").add_column("text", TEXTS)
    index = InfluenceIndex.build(model, rows, tmp_path_factory.mktemp("answers") / "index", config=CONFIG)
    return model, index, make_rows(3, seed=5)


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5 * float(second.norm()))


@pytest.mark.parametrize("k, opponents", [(4, 3), (18, 5), (30, 2), (1, 30)])
def test_both_ends_are_those_of_all_scores_and_no_row_is_on_both(asked, k, opponents):
    model, index, queries = asked
    result, scores = index.attribute(model, queries, top_k=k, opponents=opponents), index.scores(model, queries)
    lowest = max(0, min(opponents, 20 - k))
    assert result.indices.shape == (3, min(k, 20)) and result.opponent_indices.shape == (3, lowest)
    order = scores.sort(dim=1, stable=True).indices
    assert torch.equal(result.opponent_indices, order[:, :lowest])
    close(result.opponent_scores, scores.gather(1, order[:, :lowest]))
    for query in range(3):
        assert not {*result.indices[query].tolist()} & {*result.opponent_indices[query].tolist()}
    assert result.examples.keys() == {*result.indices.flatten().tolist(), *result.opponent_indices.flatten().tolist()}


def test_the_distribution_is_that_of_all_scores(asked):
    model, index, queries = asked
    for index_of, count in ((index, 20), (index.select([2, 3, 11]), 3)):
        scores = index_of.scores(model, queries).double()
        for spread, of_query in zip(index_of.attribute(model, queries).distribution, scores, strict=True):
            assert spread.count == count == sum(spread.counts)
            assert spread.mean == pytest.approx(float(of_query.mean()), abs=1e-5 * float(of_query.std()))
            assert spread.standard_deviation == pytest.approx(float(of_query.std(correction=0)), rel=1e-5)
            assert spread.edges[0] <= float(of_query.min()) and float(of_query.max()) < spread.edges[-1]


def test_layers_add_up_to_the_score(asked):
    model, index, queries = asked
    result = index.attribute(model, queries, top_k=3, opponents=2, by_layer=True)
    parts = index.scores(model, queries, per_module=True)
    assert list(result.layers) == list(parts) and len(result.layer_scores) == 3 * 5
    for (query, row), scores in result.layer_scores.items():
        close(torch.tensor(scores), torch.stack([part[query, row] for part in parts.values()]))
    one = index.attribute(model, queries[:1], top_k=2, by_layer=True, modules=["mlp.c_fc"])
    assert len(one.layers) == 2
    assert sum(one.layer_scores[0, int(one.indices[0, 0])]) == pytest.approx(float(one.scores[0, 0]), rel=1e-4)


def test_near_duplicates_are_folded_and_distinct_rows_take_their_place(asked):
    model, index, queries = asked
    result = index.attribute(model, queries, top_k=5, opponents=2, fold_duplicates=True)
    scores = index.scores(model, queries)
    assert result.indices.shape == (3, 5) and result.opponent_indices.shape == (3, 2)
    for query in range(3):
        ranked = scores[query].sort(descending=True).indices.tolist()
        groups = dict.fromkeys(row // 3 for row in ranked)
        assert [row // 3 for row in result.indices[query].tolist()] == list(groups)[:5]
        first = result.indices[query].tolist()
        assert first == [next(row for row in ranked if row // 3 == group) for group in list(groups)[:5]]
        assert all(row // 3 not in list(groups)[:5] for row in result.opponent_indices[query].tolist())
    for row, copies in result.copies.items():
        assert row in result.examples and copies and all(copy // 3 == row // 3 and copy != row for copy in copies)
    assert result.to_list()[0]["copies"] == result.copies.get(result.to_list()[0]["row"], [])


def test_fewer_distinct_rows_than_asked_for_all_come_out(tmp_path):
    """All texts are equal: one row, of which all others are copies. And of two texts, queries that have another
    number of distinct rows on a side."""
    model, rows = make_gpt2(), make_rows(6).remove_columns("text")
    same = InfluenceIndex.build(model, rows.add_column("text", ["Same."] * 6), tmp_path / "same", config=CONFIG)
    result = same.attribute(model, rows.select([1, 2]), top_k=3, fold_duplicates=True)
    assert result.indices.shape == (2, 1)
    assert all(len(result.copies[row]) == 5 for row in result.indices.flatten().tolist())
    whole = same.attribute(model, rows.select([1]), top_k=3, opponents=3, fold_duplicates=True)
    assert whole.opponent_indices.shape == (1, 0) and len(whole.to_list()) == 1
    folded = same.attribute(model, rows.select([1, 2]), top_k=3, opponents=2).folded()
    assert folded.indices.shape == (2, 1) and folded.opponent_indices.shape == (2, 1)
    assert "(+" in repr(folded)


def test_one_row_is_all_there_is(tmp_path):
    model, rows = make_gpt2(), make_rows(1)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=CONFIG)
    result = index.attribute(model, rows, top_k=3, opponents=3, by_layer=True)
    assert result.indices.tolist() == [[0]] and result.opponent_indices.shape == (1, 0)
    (standing,) = result.standing
    assert (standing["rank"], standing["count"], standing["z"]) == (1, 1, None)
    assert len(index) == 1 and index[-1]["text"] == "text 0" and "row" in repr(result)


def test_each_token_has_its_ends_and_its_distribution(asked):
    model, index, queries = asked
    scores = index.scores(model, queries, per_token=True)
    result = index.attribute(model, queries, top_k=2, opponents=2, per_token=True, fold_duplicates=True)
    for query, tokens in enumerate(result.tokens):
        assert len(result.distribution[query]) == len(tokens)
        for place in range(len(tokens)):
            spread, of_token = result.distribution[query][place], scores[query, place].double()
            assert spread.mean == pytest.approx(float(of_token.mean()), abs=1e-5 * float(of_token.std()))
            assert int(result.indices[query, place, 0]) == int(of_token.argmax())
        assert bool((result.indices[query, len(tokens) :] == -1).all())
    assert result[1].to_list() == [{**r, "query_id": 0} for r in result.to_list() if r["query_id"] == 1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_k": 0}, "top_k must be an integer of at least 1"),
        ({"opponents": -1}, "opponents must be an integer of at least 0"),
        ({"opponents": 2, "largest": False}, "opponents= puts them beside the proponents: leave out largest="),
        (
            {"by_layer": True, "per_token": True},
            "by_layer=True is of the scores of whole queries: leave out per_token=",
        ),
        ({"shade": True, "per_token": True}, "whole queries: leave out per_token="),
        ({"shade": True, "by_document": True}, "leave out by_document= or shade="),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(asked, options, message):
    model, index, queries = asked
    with pytest.raises(QueryError, match=message):
        index.attribute(model, queries, **options)


def test_without_texts_nothing_is_folded_or_shaded(tmp_path):
    model, rows = make_gpt2(), make_rows(5)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=CONFIG, store_text=False)
    with pytest.raises(QueryError, match=r"none is in this index \(store_text=False\): leave it out"):
        index.attribute(model, rows.select([0]), fold_duplicates=True)
    with pytest.raises(QueryError, match=r"none of these is in this index \(store_text=False\): leave it out"):
        index.attribute(model, rows.select([0]), shade=True)
    assert index.attribute(model, rows.select([0]), opponents=2).to_list()[0]["text"] is None


def test_layers_that_were_projected_together_have_no_scores_of_their_own(tmp_path):
    model, rows = make_gpt2(), make_rows(5)
    config = InfluenceConfig.trak(projection_dim=16)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    with pytest.raises(QueryError, match="no single layers. Leave out by_layer="):
        index.attribute(model, rows.select([0]), by_layer=True)
    with pytest.raises(QueryError, match="no sums over tokens: leave out shade="):
        index.attribute(model, rows.select([0]), shade=True)


def test_documents_are_shown_at_both_ends(asked):
    """Of four pieces each: none is on both sides with any of its pieces, and layers add up over all of them."""
    model, index, queries = asked
    ranker = RowRanker(index._asked(model, queries, QueryOptions()), documents=np.arange(20.0) // 4)
    shown = shown_rows(ranker, index.examples, AnswerOptions(top_k=2, opponents=4))
    sums = index.scores(model, queries).view(3, 5, 4).sum(dim=2)
    order = sums.sort(dim=1, descending=True).indices
    assert torch.equal(shown.indices // 4, order[:, :2])
    assert torch.equal(shown.opponent_indices // 4, order.flip(1)[:, :3])
    assert all(shown.examples[row]["pieces"] == list(range(row // 4 * 4, row // 4 * 4 + 4)) for row in shown.examples)
    for (query, row), scores in layers_of(ranker, shown).items():
        assert sum(scores) == pytest.approx(float(sums[query, row // 4]), rel=1e-3, abs=1e-4)


def test_what_is_asked_is_told(asked):
    model, index, _ = asked
    rows = Dataset.from_list([{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}, {"input_ids": [3, 4]}])
    result = index.attribute(model, rows, top_k=1)
    assert result.prompts == [len("3 4"), None] and result.queries[0] == "3 4 5 6"
    known = result.provenance
    assert (known.model, known.index, known.num_examples) == ("GPT2LMHeadModel", "index", 20)
    assert known.config == CONFIG.to_dict() and known.versions["torch"] == torch.__version__
    assert known.date[:2] == "20" and known.date[-1] == "Z" and known.repo_id is None
