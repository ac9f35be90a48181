"""Queries are held thin where their tokens let them be, and score the same."""

import pytest
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.querying import preconditioning


@pytest.mark.parametrize("choices", [{}, {"factor_rank": 8, "bits": 4}, {"output": "margin"}], ids=str)
def test_queries_of_few_tokens_are_held_thin_and_score_the_same(tmp_path, monkeypatch, choices):
    model, rows, config = make_gpt2(width=48), make_rows(30), InfluenceConfig(shard_size=8, **choices)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    forms = []
    real = preconditioning.compress

    def seen(*args):
        forms.extend(group.right is not None for group in real(*args))
        return real(*args)

    widest = preconditioning.widest_rank
    monkeypatch.setattr(preconditioning, "compress", seen)
    monkeypatch.setattr(preconditioning, "widest_rank", lambda *sizes: widest(*sizes[:4]))  # as for very many examples
    thin = index.scores(model, rows.select(range(4)))
    assert forms and all(forms)
    monkeypatch.setattr(preconditioning, "widest_rank", lambda *sizes: 0)
    whole = index.scores(model, rows.select(range(4)))
    assert (thin - whole).norm() <= 1e-4 * whole.norm()
