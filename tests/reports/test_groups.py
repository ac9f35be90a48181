"""Influence by groups: sums over the rows with the same value."""

import pytest
import torch

from lorif_hf.reports import groups
from lorif_hf.reports.groups import group_influence, shown_influence


VALUES = ["wiki", None, "news", "wiki", "wiki", None]
SCORES = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [-1.0, 0.0, 0.5, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("together", [1 << 22, 4])
def test_all_scores_are_summed_by_group_largest_group_first(monkeypatch, together):
    monkeypatch.setattr(groups, "_TOGETHER", together)
    influence = group_influence(["first", "second"], SCORES, VALUES, "source")
    assert influence.groups == ["wiki", None, "news"] and influence.counts == [3, 2, 1] and influence.whole
    assert influence.sums.tolist() == [[25.0, 34.0, 4.0], [-1.0, 0.0, 0.5]]
    table = influence.to_pandas()
    assert table.loc["first", "wiki"] == 25 and table.columns.name == "source" and table.shape == (2, 3)
    assert "wiki" in repr(influence) and "first" in repr(influence)


def test_tokens_count_together_and_true_is_not_one():
    scores = torch.stack([SCORES, torch.full_like(SCORES, torch.nan)], dim=1)
    assert torch.equal(
        group_influence(["a", "b"], scores, VALUES, "s").sums[:, 0], torch.tensor([25.0, -1.0]).double()
    )
    assert group_influence(["a", "b"], SCORES, [True, 1, 1, True, 1.5, "1"], "s").counts == [2, 2, 1, 1]


def test_rows_that_are_shown_are_summed_for_their_query():
    pairs = [(0, 1.0, "wiki"), (0, 2.0, "wiki"), (1, 4.0, "news"), (1, 8.0, None)]
    influence = shown_influence(["a", "b"], pairs, "source")
    assert influence.groups == ["wiki", "news", None] and not influence.whole
    assert influence.sums.tolist() == [[3.0, 0.0, 0.0], [0.0, 4.0, 8.0]]
    assert shown_influence([], [], "source").to_pandas().shape == (0, 0)
