"""Queries held thin or cut: nothing lost where they are thin, and never more lost than the bound says."""

import pytest
import torch

from lorif_hf.algebra.scoring import QueryGroup, Workspace, add_scores
from lorif_hf.algebra.thin_queries import (
    compress,
    frobenius_bounds,
    gradient_bounds,
    joined,
    range_factors,
    spectral_bounds,
    truncate,
    widest_rank,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_rank(queries, rank, d1, d2, seed=0):
    return random(queries, d1, rank, seed=seed) @ random(queries, rank, d2, seed=seed + 1)


def decaying(queries, d1, d2, decay=0.8, seed=0):
    """Full rank, singular values falling by `decay`."""
    side = min(d1, d2)
    left, right = (torch.linalg.qr(random(queries, d, side, seed=seed + d)).Q for d in (d1, d2))
    return left * decay ** torch.arange(side) @ right.mT


def expanded(groups, queries):
    """Q~ of all queries, put in their order; each of them must be in one group."""
    matrices = torch.cat([group.matrices() for group in groups])
    numbers = torch.cat([group.numbers for group in groups])
    assert sorted(numbers.tolist()) == list(range(queries))
    return matrices[numbers.argsort()]


def singular(matrices):
    return torch.linalg.svdvals(matrices.double())


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("d1, d2", [(60, 90), (90, 60)])
def test_queries_of_low_rank_are_held_thin_and_lose_nothing(d1, d2, scale):
    kinds = [of_rank(1, rank, d1, d2, seed=rank) for rank in (1, 3, 8, 9, 17)] + [torch.zeros(1, d1, d2)]
    matrices = torch.cat(kinds) * scale
    groups = compress(matrices, torch.arange(6), widest=24)
    assert all(group.right is not None for group in groups)
    widths = {int(number): group.left.shape[1] for group in groups for number in group.numbers}
    assert widths == {0: 8, 1: 8, 2: 8, 3: 16, 4: 24, 5: 8}
    found = expanded(groups, 6)
    lost = (found / scale - matrices / scale).flatten(1).norm(dim=1)
    assert bool((lost <= 4e-6 * (matrices / scale).flatten(1).norm(dim=1)).all())
    assert float(found[5].abs().max()) == 0


def test_queries_of_full_rank_stay_as_they_are():
    matrices = torch.cat([random(2, 40, 40), of_rank(1, 4, 40, 40), random(1, 40, 40, seed=5)])
    groups = compress(matrices, torch.arange(4), widest=16)
    whole = next(group for group in groups if group.right is None)
    assert whole.numbers.tolist() == [0, 1, 3] and torch.equal(whole.left, matrices[[0, 1, 3]])
    assert len(groups) == 2 and expanded(groups, 4).shape == (4, 40, 40)


@pytest.mark.parametrize("widest", [0, 8])
def test_what_is_not_finite_or_not_to_be_thin_stays_whole(widest):
    matrices = of_rank(2, 2, 30, 30)
    matrices[0, 3, 3] = torch.inf if widest else 1.0
    groups = compress(matrices, torch.arange(2), widest)
    assert {int(n) for group in groups if group.right is None for n in group.numbers} == ({0} if widest else {0, 1})


def test_a_little_more_than_rounding_is_not_dropped():
    thin, rest = of_rank(1, 3, 60, 60), random(1, 60, 60, seed=9)
    matrices = thin + 1e-4 * rest * thin.norm() / rest.norm()
    (group,) = compress(matrices, torch.arange(1), widest=16)
    assert group.right is None


def test_batches_are_joined_by_form():
    first = compress(torch.cat([of_rank(1, 2, 40, 40), random(1, 40, 40)]), torch.tensor([0, 1]), 8)
    second = compress(torch.cat([of_rank(1, 3, 40, 40, seed=7), random(1, 40, 40, seed=8)]), torch.tensor([2, 3]), 8)
    groups = joined([*first, *second])
    assert sorted(group.numbers.tolist() for group in groups) == [[0, 2], [1, 3]]
    expected = torch.cat([of_rank(1, 2, 40, 40), random(1, 40, 40), of_rank(1, 3, 40, 40, seed=7)])
    torch.testing.assert_close(expanded(groups, 4)[:3], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "pairs, d1, d2, queries, expected", [(1, 48, 48, 1, 16), (1, 768, 3072, 1, 424), (3, 768, 3072, 512, 144)]
)
def test_the_widest_rank_is_where_thin_queries_stop_being_cheaper(pairs, d1, d2, queries, expected):
    rank = widest_rank(pairs, d1, d2, queries)
    assert rank == expected and rank * (d1 + d2) < d1 * d2
    assert widest_rank(1, 4, 4, 1) == 0


SHAPES = [(1, 1), (1, 7), (7, 1), (12, 12), (20, 50), (50, 20)]


@pytest.mark.parametrize("d1, d2", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("kind", ["random", "rank one", "decaying"])
def test_the_spectral_bound_is_never_below_the_norm_and_close_to_it(kind, scale, d1, d2):
    made = {"random": random(3, d1, d2), "rank one": of_rank(3, 1, d1, d2), "decaying": decaying(3, d1, d2)}
    matrices = made[kind] * scale
    norms, found = singular(matrices)[:, 0], spectral_bounds(matrices)
    assert found.dtype == torch.float64
    assert bool((found >= norms * (1 - 1e-12)).all()) and bool((found <= 1.13 * norms).all())


def test_the_spectral_bound_of_nothing_is_nothing():
    assert spectral_bounds(torch.zeros(2, 3, 4)).max() < 1e-9
    assert torch.equal(spectral_bounds(torch.zeros(2, 0, 4)), torch.zeros(2, dtype=torch.float64))
    assert spectral_bounds(torch.zeros(0, 3, 4)).shape == (0,)


@pytest.mark.parametrize("rank", [1, 3, 8, 30])
@pytest.mark.parametrize("thin", [False, True], ids=["whole", "thin"])
def test_no_score_of_a_cut_query_is_further_off_than_its_bound(thin, rank):
    d1, d2 = 30, 44
    exact = of_rank(5, 14, d1, d2) if thin else decaying(5, d1, d2)
    groups = compress(exact, torch.arange(5), 16) if thin else [QueryGroup(torch.arange(5), exact)]
    cut, bounds = truncate(groups, rank, 5)
    assert all(group.left.shape[1] <= max(rank, 1) for group in cut)
    rest = expanded(groups, 5).double() - expanded(cut, 5).double()
    left, values, right = torch.linalg.svd(rest)
    assert bool((values[:, 0] <= bounds).all()), "the worst pair of vectors there is"
    if rank < 14:
        assert bool((bounds <= 1.3 * values[:, 0] + 1e-3 * frobenius_bounds(groups[0])).all()), "nor far above it"
    else:
        assert bool((bounds <= 1e-2 * exact.double().flatten(1).norm(dim=1)).all())
    # The same of the products as they are computed, for the worst vectors of each query.
    us, vs = left[:, :, 0].float(), right[:, 0].float()
    scores = torch.zeros(2, 5, 5)
    for number, some in enumerate((groups, cut)):
        for group in some:
            add_scores(scores[number], group, us.unsqueeze(1), vs.unsqueeze(1), None, Workspace())
    assert bool(((scores[0] - scores[1]).abs().double() <= bounds.unsqueeze(1)).all())


def test_a_cut_keeps_about_the_best_of_a_query():
    matrices = decaying(4, 40, 40, decay=0.7)
    cut, bounds = truncate([QueryGroup(torch.arange(4), matrices)], 6, 4)
    assert bool((bounds <= 1.3 * singular(matrices)[:, 6]).all()) and cut[0].left.shape == (4, 6, 40)


@pytest.mark.parametrize("pairs", [None, 1, 4])
@pytest.mark.parametrize("thin", [False, True], ids=["whole", "thin"])
def test_no_gradient_scores_above_its_norm_times_the_bound(thin, pairs):
    matrices = of_rank(4, 6, 25, 35)
    groups = compress(matrices, torch.arange(4), 8) if thin else [QueryGroup(torch.arange(4), matrices)]
    bounds, values = gradient_bounds(groups, pairs, 4), singular(matrices)
    # The gradient of norm one and of that rank whose score is the highest is the query's own best approximation.
    highest = values[:, : pairs or 25].square().sum(dim=1).sqrt()
    assert bool((bounds >= highest).all())
    assert bool((bounds <= 1.6 * values.square().sum(dim=1).sqrt()).all())
    if pairs == 1:
        assert bool((bounds <= 1.2 * values[:, 0] * (1.3 if thin else 1)).all())


def test_the_same_query_is_always_cut_alike():
    matrices = random(3, 20, 30)
    one, two = range_factors(matrices, 4, 2), range_factors(matrices, 4, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    torch.testing.assert_close(one[0] @ one[0].mT, torch.eye(4).expand(3, 4, 4), rtol=1e-5, atol=1e-5)


def test_what_is_known_of_the_ranks_decides_where_to_look():
    """At most so many tokens: a query that may have more than is looked for is not looked at."""
    matrices = torch.cat([of_rank(1, rank, 60, 60, seed=rank) for rank in (2, 9, 5, 3)])
    groups = compress(matrices, torch.arange(4), 16, [2, 12, 17, 1])
    assert {int(n): g.right is None or g.left.shape[1] for g in groups for n in g.numbers} == {
        0: 8,
        1: 16,
        2: True,
        3: 8,
    }
    torch.testing.assert_close(expanded(groups, 4), matrices, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pairs, queries", [(1, 1), (3, 1), (3, 100)])
def test_few_examples_are_not_worth_looking(pairs, queries):
    ranks = [widest_rank(pairs, 192, 192, queries, examples) for examples in (10, 1000, 10**5, 10**7)]
    assert ranks == sorted(ranks) and ranks[0] == 0 and ranks[-1] == widest_rank(pairs, 192, 192, queries) > 0
