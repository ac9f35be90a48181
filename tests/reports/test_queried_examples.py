"""What an index is asked of groups; its answers are in test_answering.py, its scores in test_answers.py."""

import pytest
import torch
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import QueryError


def test_influence_is_summed_over_all_rows_with_a_value(tmp_path):
    model, rows = make_gpt2(), make_rows(12).add_column("source", ["wiki", None, "news"] * 4)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=InfluenceConfig(shard_size=5))
    queries = make_rows(2, seed=5)
    scores, influence = index.scores(model, queries), index.influence_by(model, queries, "source")
    assert influence.groups == ["wiki", None, "news"] and influence.whole and influence.counts == [4, 4, 4]
    expected = torch.stack([scores[:, place::3].double().sum(dim=1) for place in range(3)], dim=1)
    torch.testing.assert_close(influence.sums, expected)
    assert index.attribute(model, queries, top_k=12).by("source").to_pandas()["news"].tolist() == pytest.approx(
        influence.sums[:, 2].tolist(), rel=1e-4, abs=1e-5
    )
    some = index.select([0, 1, 3]).influence_by(model, queries, "source", measure="log_prob")
    assert some.groups == ["wiki", None] and some.counts == [2, 1]
    torch.testing.assert_close(some.sums[:, 1], scores[:, 1].double(), rtol=1e-4, atol=1e-5)
    assert index.influence_by(model, queries, "row").sums.shape == (2, 12)
    with pytest.raises(QueryError, match="The examples have no column 'colour': there are 'row', 'example_id'"):
        index.influence_by(model, queries, "colour")
