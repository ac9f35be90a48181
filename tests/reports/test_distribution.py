"""What a score is compared with."""

import math

from lorif_hf.reports.distribution import ScoreDistribution


def test_how_far_a_score_is_from_the_mean():
    spread = ScoreDistribution(4, 1.0, 0.5, [0.0, 2.0], [4])
    assert spread.z(2.0) == 2.0 and spread.z(0.0) == -2.0


def test_where_all_scores_are_equal_none_is_far():
    assert math.isnan(ScoreDistribution(3, 1.0, 0.0, [1.0, 2.0], [3]).z(1.0))
