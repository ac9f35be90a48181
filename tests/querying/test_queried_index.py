"""What a query reads of an index: the layers that are asked for, each projection once."""

import pytest
import torch
from tiny import plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import QueryError
from lorif_hf.querying import queried_index


def test_only_modules_that_match_are_scored(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index")
    parts = index.scores(gpt2, rows.select([0, 1]), per_module=True)
    chosen = index.scores(gpt2, rows.select([0, 1]), modules=["mlp.c_fc"])
    assert torch.allclose(chosen, sum(part for name, part in parts.items() if name.endswith("mlp.c_fc")), atol=1e-6)
    assert torch.equal(chosen, index.scores(gpt2, rows.select([0, 1]), modules=r".*mlp\.c_fc"))
    with pytest.raises(QueryError, match="matches none of the index's 8 modules, for example 'transformer.h.0"):
        index.scores(gpt2, rows.select([0]), modules=["nothing"])
    with pytest.raises(QueryError, match="is not a valid regular expression"):
        index.scores(gpt2, rows.select([0]), modules="h.0(")


def test_projections_are_drawn_once_for_all_queries(gpt2, rows, tmp_path, monkeypatch):
    """Those of the asked layers alone, and shared with a selection."""
    config = plain_config(projection_factor=2)
    built = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=config)
    expected = built.scores(gpt2, rows)
    index, drawn, draw = InfluenceIndex.from_pretrained(tmp_path / "index"), [], queried_index.checked_projection
    monkeypatch.setattr(
        queried_index, "checked_projection", lambda entry, config: drawn.append(entry.name) or draw(entry, config)
    )
    names = [entry.name for entry in index.manifest.modules]
    index.scores(gpt2, rows.select([0]), modules=names[:1])
    assert drawn == names[:1]
    for _ in range(2):
        assert torch.equal(index.scores(gpt2, rows), expected)
        torch.testing.assert_close(index.select([3, 4]).scores(gpt2, rows), expected[:, [3, 4]], rtol=1e-5, atol=1e-5)
    assert sorted(drawn) == sorted(names)
