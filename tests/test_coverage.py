"""The share of what was trained, and what is said of the rest."""

import pytest

from lorif_hf.coverage import Coverage, Untracked


def test_share_reasons_and_the_line_for_people():
    untracked = [Untracked("a", 10, "a norm"), Untracked("b", 5, "a bias"), Untracked("c", 20, "a norm")]
    coverage = Coverage(65, 100, untracked)
    assert coverage.share == 0.65
    assert list(coverage.reasons.items()) == [("a norm", 30), ("a bias", 5)]
    assert str(coverage) == "65.0% of the trained parameters are tracked; left out: 30.0% a norm; 5.0% a bias"


@pytest.mark.parametrize("coverage, share", [(Coverage(), 0.0), (Coverage(7, 7), 1.0)])
def test_the_ends(coverage, share):
    assert coverage.share == share and str(coverage) == f"{share:.1%} of the trained parameters are tracked"
