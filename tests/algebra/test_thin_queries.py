"""Queries held as products of thin matrices: nothing is lost, and what is not thin stays whole."""

import pytest
import torch

from lorif_hf.algebra.scoring import Workspace, add_scores
from lorif_hf.algebra.thin_queries import compress, joined, range_factors, widest_rank


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_rank(queries, rank, d1, d2, seed=0):
    return random(queries, d1, rank, seed=seed) @ random(queries, rank, d2, seed=seed + 1)


def expanded(groups, queries):
    """Q~ of all queries, put in their order; each of them must be in one group."""
    matrices = torch.cat([group.matrices() for group in groups])
    numbers = torch.cat([group.query_ids for group in groups])
    assert sorted(numbers.tolist()) == list(range(queries))
    return matrices[numbers.argsort()]


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("d1, d2", [(60, 90), (90, 60)])
def test_queries_of_low_rank_are_held_thin_and_lose_nothing(d1, d2, scale):
    kinds = [of_rank(1, rank, d1, d2, seed=rank) for rank in (1, 3, 8, 9, 17)] + [torch.zeros(1, d1, d2)]
    matrices = torch.cat(kinds) * scale
    groups = compress(matrices, torch.arange(6), widest=24)
    assert all(group.right is not None for group in groups)
    widths = {int(number): group.left.shape[1] for group in groups for number in group.query_ids}
    assert widths == {0: 8, 1: 8, 2: 8, 3: 16, 4: 24, 5: 8}
    found = expanded(groups, 6)
    lost = (found / scale - matrices / scale).flatten(1).norm(dim=1)
    assert bool((lost <= 4e-6 * (matrices / scale).flatten(1).norm(dim=1)).all())
    assert float(found[5].abs().max()) == 0


def test_queries_of_full_rank_stay_as_they_are():
    matrices = torch.cat([random(2, 40, 40), of_rank(1, 4, 40, 40), random(1, 40, 40, seed=5)])
    groups = compress(matrices, torch.arange(4), widest=16)
    whole = next(group for group in groups if group.right is None)
    assert whole.query_ids.tolist() == [0, 1, 3] and torch.equal(whole.left, matrices[[0, 1, 3]])
    assert len(groups) == 2 and expanded(groups, 4).shape == (4, 40, 40)


@pytest.mark.parametrize("widest", [0, 8])
def test_what_is_not_finite_or_not_to_be_thin_stays_whole(widest):
    matrices = of_rank(2, 2, 30, 30)
    matrices[0, 3, 3] = torch.inf if widest else 1.0
    groups = compress(matrices, torch.arange(2), widest)
    assert {int(n) for group in groups if group.right is None for n in group.query_ids} == ({0} if widest else {0, 1})


def test_a_little_more_than_rounding_is_not_dropped():
    thin, rest = of_rank(1, 3, 60, 60), random(1, 60, 60, seed=9)
    matrices = thin + 1e-4 * rest * thin.norm() / rest.norm()
    (group,) = compress(matrices, torch.arange(1), widest=16)
    assert group.right is None


def test_batches_are_joined_by_form():
    first = compress(torch.cat([of_rank(1, 2, 40, 40), random(1, 40, 40)]), torch.tensor([0, 1]), 8)
    second = compress(torch.cat([of_rank(1, 3, 40, 40, seed=7), random(1, 40, 40, seed=8)]), torch.tensor([2, 3]), 8)
    groups = joined([*first, *second])
    assert sorted(group.query_ids.tolist() for group in groups) == [[0, 2], [1, 3]]
    expected = torch.cat([of_rank(1, 2, 40, 40), random(1, 40, 40), of_rank(1, 3, 40, 40, seed=7)])
    torch.testing.assert_close(expanded(groups, 4)[:3], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "pairs, d1, d2, queries, expected", [(1, 48, 48, 1, 16), (1, 768, 3072, 1, 424), (3, 768, 3072, 512, 144)]
)
def test_the_widest_rank_is_where_thin_queries_stop_being_cheaper(pairs, d1, d2, queries, expected):
    rank = widest_rank(pairs, d1, d2, queries)
    assert rank == expected and rank * (d1 + d2) < d1 * d2
    assert widest_rank(1, 4, 4, 1) == 0


@pytest.mark.parametrize("rank", [1, 5, 8, 14])
def test_scores_of_thin_queries_are_those_of_whole_ones(rank):
    d1, d2 = 30, 44
    matrices = of_rank(5, rank, d1, d2)
    groups = compress(matrices, torch.arange(5), widest=16)
    assert all(group.right is not None for group in groups)
    left, right = random(9, 2, d1, seed=3), random(9, 2, d2, seed=4)
    expected = torch.zeros(5, 9, dtype=torch.float64)
    for query in range(5):
        for row in range(9):
            for u, v in zip(left[row].double(), right[row].double(), strict=True):
                expected[query, row] += u @ matrices[query].double() @ v
    scores = torch.zeros(5, 9)
    for group in groups:
        add_scores(scores, group, left, right, None, Workspace())
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("d1, d2", [(20, 50), (50, 20), (7, 1)])
def test_range_factors_of_at_least_the_rank_are_the_matrices(d1, d2, scale):
    rank = min(3, d1, d2)
    matrices = of_rank(4, rank, d1, d2) * scale
    left, right = range_factors(matrices, rank)
    assert left.shape == (4, rank, d1) and right.shape == (4, rank, d2)
    torch.testing.assert_close((left.mT @ right) / scale, matrices / scale, rtol=1e-4, atol=1e-4)


def test_the_same_query_is_always_held_alike():
    matrices = random(3, 20, 30)
    first, second = range_factors(matrices, 4), range_factors(matrices, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first[0] @ first[0].mT, torch.eye(4).expand(3, 4, 4), rtol=1e-5, atol=1e-5)


def test_what_is_known_of_the_ranks_decides_where_to_look():
    """At most so many tokens: a query that may have more than is looked for is not looked at."""
    matrices = torch.cat([of_rank(1, rank, 60, 60, seed=rank) for rank in (2, 9, 5, 3)])
    groups = compress(matrices, torch.arange(4), 16, [2, 12, 17, 1])
    assert {int(n): g.right is None or g.left.shape[1] for g in groups for n in g.query_ids} == {
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
