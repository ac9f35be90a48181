"""Both ends of all scores, as a sort of them has them."""

import pytest
import torch

from lorif_hf.querying.ranked import RunningRanking


@pytest.mark.parametrize("largest", [True, False])
def test_both_ends_and_the_spread_come_out(largest):
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    running = RunningRanking(2, 4, largest, opponents=3)
    for start in (20, 0):
        running.update(scores[:, start : start + 20 + start // 2], torch.arange(start, start + 20 + start // 2))
    ranked = running.ranked()
    for rows, values, k, side in (
        (ranked.indices, ranked.scores, 4, largest),
        (ranked.opponent_indices, ranked.opponent_scores, 3, not largest),
    ):
        expected = scores.sort(dim=1, descending=side, stable=True)
        assert torch.equal(rows, expected.indices[:, :k]) and torch.equal(values, expected.values[:, :k])
    assert [spread.count for spread in ranked.spreads] == [50, 50]
    assert RunningRanking(2, 4).ranked().opponent_scores is None
