"""The rows of a ranking, those of both ends one after the other."""

import torch

from lorif_hf import Attribution
from lorif_hf.reports.distribution import ScoreDistribution
from lorif_hf.reports.rankings import rankings


def test_opponents_come_behind_the_best_and_count_from_the_end():
    spread = ScoreDistribution(9, 1.0, 2.0, [-8.0, 8.0], [9])
    whole = Attribution(
        torch.tensor([[5.0, 3.0]]),
        torch.tensor([[4, 1]]),
        {},
        ["asked"],
        [1.0],
        opponent_scores=torch.tensor([[-3.0, torch.nan]]),
        opponent_indices=torch.tensor([[7, -1]]),  # there is one alone
        distribution=[spread],
    )
    (ranking,) = rankings(whole, 0)
    assert ranking.rows == [4, 1, 7] and ranking.scores == [5.0, 3.0, -3.0] and ranking.opponents == 1
    assert [ranking.rank(place) for place in range(3)] == [1, 2, 9] and ranking.z(0) == 2.0
    whole.distribution = None
    (ranking,) = rankings(whole, 0)
    assert ranking.rank(2) == -1 and ranking.z(0) is None
