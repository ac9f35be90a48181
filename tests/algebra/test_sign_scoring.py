"""Products with sign vectors by looking up what their bytes add, against products in float64."""

import pytest
import torch

from lorif_hf.algebra import scoring, sign_scoring
from lorif_hf.algebra.quantization import pack, unpack
from lorif_hf.algebra.scoring import QueryGroup, Workspace
from lorif_hf.algebra.sign_scoring import SignPairs, add_sign_scores, byte_tables, looking_up_pays


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(count, pairs, d1, d2, seed=0):
    """Packed signs; what is beyond the end of a vector in its last byte is anything, as a file may hold it."""
    sides = []
    for number, extent in enumerate((d1, d2)):
        packed = pack(random(count, extent, pairs, seed=seed + number).sign(), 1)
        if extent % 8:
            packed[..., -1] |= (0xFF << extent % 8) & 0xFF
        sides.append(packed)
    return SignPairs(*sides, random(count, pairs, seed=seed + 2).bfloat16())


def expected_scores(matrices, pairs):
    """sum_j a_ij u_ij^T Q~_q v_ij in float64."""
    left, right = unpack(pairs.left, matrices.shape[1], 1), unpack(pairs.right, matrices.shape[2], 1)
    return torch.einsum("nc,ncr,qrk,nck->qn", pairs.scales.double(), left.double(), matrices.double(), right.double())


def whole(matrices):
    return QueryGroup(torch.arange(len(matrices)), matrices)


@pytest.mark.parametrize(
    "queries, count, pairs", [(1, 130, 3), (3, 11, 2), (1, 1, 1), (2, 64, 5), (0, 4, 1), (2, 0, 3)]
)
@pytest.mark.parametrize("d1, d2", [(8, 8), (5, 7), (1, 1), (40, 3), (3, 40), (16, 150), (150, 16)])
@pytest.mark.parametrize("small", [False, True], ids=["blocks that hold all", "small blocks"])
def test_scores_equal_the_expected_scores(monkeypatch, queries, count, pairs, d1, d2, small):
    if small:
        monkeypatch.setattr(sign_scoring, "_PAIRS", 1)
        monkeypatch.setattr(sign_scoring, "_TABLES", 1)
        monkeypatch.setattr(scoring, "KEPT_NUMBERS", 5000)
    matrices, pairs_of = random(queries, d1, d2, seed=7), stored(count, pairs, d1, d2)
    scores, workspace = torch.zeros(queries, count), Workspace()
    for repeat in (1, 2):  # the second time with the tables that were kept
        add_sign_scores(scores, whole(matrices), pairs_of, workspace)
        expected = repeat * expected_scores(matrices, pairs_of)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_byte_adds_its_signed_sum_of_eight_rows():
    matrix = random(24, 5)
    tables = byte_tables(matrix).view(3, 256, 5)
    for byte in (0, 1, 37, 128, 255):
        signs = torch.tensor([1.0 if byte >> bit & 1 else -1.0 for bit in range(8)])
        for place in range(3):
            torch.testing.assert_close(tables[place, byte], signs @ matrix[8 * place : 8 * place + 8])


def test_a_group_adds_to_the_scores_of_its_own_queries():
    pairs = stored(70, 3, 24, 16)
    matrices, scores, numbers = random(2, 24, 16), torch.ones(4, 70), torch.tensor([1, 3])
    add_sign_scores(scores, QueryGroup(numbers, matrices), pairs, Workspace())
    torch.testing.assert_close(scores[numbers].double() - 1, expected_scores(matrices, pairs), rtol=1e-5, atol=1e-4)
    assert torch.equal(scores[[0, 2]], torch.ones(2, 70))


def test_equal_examples_have_equal_scores_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(sign_scoring, "_PAIRS", 200)
    alone = stored(1, 3, 48, 40)
    many = SignPairs(*(side.repeat(333, 1, 1) for side in (alone.left, alone.right)), alone.scales.repeat(333, 1))
    scores = torch.zeros(2, 333)
    add_sign_scores(scores, whole(random(2, 48, 40)), many, Workspace())
    assert bool((scores == scores[:, :1]).all())


def test_a_query_that_is_no_number_and_a_scale_that_is_none_spoil_what_they_meet():
    pairs = stored(70, 2, 9, 9)
    pairs.scales[5, 1] = torch.inf
    matrices = random(2, 9, 9)
    matrices[1, 8, 8] = torch.nan
    scores = torch.zeros(2, 70)
    add_sign_scores(scores, whole(matrices), pairs, Workspace())
    assert bool(scores[1].isnan().all())
    assert (~scores[0].isfinite()).nonzero()[:, 0].tolist() == [5]


def test_few_queries_that_are_held_whole_are_looked_up_where_there_are_many_examples():
    group = whole(random(8, 4, 4))
    assert looking_up_pays(group, 3, 2000)
    assert not looking_up_pays(group, 3, 1000)
    assert not looking_up_pays(whole(random(9, 4, 4)), 3, 10**6)
    assert not looking_up_pays(QueryGroup(torch.arange(1), random(1, 2, 4), random(1, 2, 4)), 3, 10**6)


def test_a_workspace_keeps_what_it_has_room_for(monkeypatch):
    monkeypatch.setattr(scoring, "KEPT_NUMBERS", 10)
    workspace, group, other = Workspace(), whole(random(1, 2, 2)), whole(random(1, 2, 2))
    first = workspace.kept(group, 0, lambda: torch.zeros(6))
    assert workspace.kept(group, 0, lambda: torch.ones(6)) is first
    assert workspace.kept(other, 0, lambda: torch.ones(4)) is not first
    too_much = workspace.kept(group, 1, lambda: torch.zeros(1))
    assert workspace.kept(group, 1, lambda: torch.ones(1)) is not too_much
