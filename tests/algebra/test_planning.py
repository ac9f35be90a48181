"""Which method sizes and memory call for."""

import pytest

from lorif_hf.algebra.gradients import BLOCK_NUMBERS, StoredGradients
from lorif_hf.algebra.planning import MEMORY, plan_fit, plan_method, published_flops


METHODS = ["gram", "dual", "nystroem", "randomized"]


def layer(count, d1, d2, factor_rank=1):
    return StoredGradients(lambda rows: iter(()), count, d1, d2, factor_rank)


@pytest.mark.parametrize(
    "sizes, rank, method",
    [
        ((20_000, 48, 48), 2048, "gram"),
        ((5_000, 192, 192), 1024, "dual"),
        ((100_000, 192, 192), 512, "nystroem"),
        ((100_000, 64, 64), 16, "gram"),  # small enough, whatever a sketch would cost
        ((100_000, 72, 72), 16, "nystroem"),  # much work for 16 eigenpairs
        ((100_000, 72, 72), 512, "gram"),
        ((2_000, 2_048, 1, None), None, "dual"),
        ((20_000, 2_048, 1, None), None, "gram"),
        ((4_000, 192, 192, None), 512, "dual"),
        ((5_000, 192, 192, None), 512, "nystroem"),  # an entry of the kernel costs D operations
        ((1, 1, 1), None, "gram"),
    ],
)
def test_the_method_is_chosen_by_size(sizes, rank, method):
    plan = plan_fit(layer(*sizes), rank)
    assert plan.method == method and plan.passes == 1 and plan.memory <= MEMORY
    assert plan.block == BLOCK_NUMBERS


def test_several_passes_are_made_only_where_they_are_asked_for_and_needed():
    assert plan_fit(layer(20_000, 48, 48), 512, passes=5).method == "gram"
    asked = plan_fit(layer(100_000, 192, 192), 512, passes=5)
    assert (asked.method, asked.passes, asked.width) == ("randomized", 5, 522)


def test_the_rank_is_capped_and_none_keeps_all():
    assert plan_fit(layer(50, 6, 8), None).rank == 48
    assert plan_fit(layer(50, 6, 8), 500).rank == 48
    assert plan_fit(layer(20, 6, 8), 500).rank == 20
    assert plan_fit(layer(20, 6, 8), 3).rank == 3


@pytest.mark.parametrize("passes", [1, 5])
@pytest.mark.parametrize("sizes", [(20_000, 48, 48), (5_000, 192, 192), (100_000, 192, 192), (5_000, 192, 192, None)])
def test_less_memory_gives_leaner_plans_down_to_the_least(sizes, passes):
    stored, rank = layer(*sizes), 256
    least = plan_fit(stored, rank, passes=passes, max_memory=0)
    memories = [least.memory + step * (MEMORY - least.memory) // 8 for step in range(9)]
    plans = [plan_fit(stored, rank, passes=passes, max_memory=memory) for memory in memories]
    assert plans[0] == least
    assert all(plan.memory <= memory for plan, memory in zip(plans, memories, strict=True))
    assert plan_fit(stored, rank, passes=passes, max_memory=least.memory - 1) == least
    assert least.memory >= 4 * stored.dim * rank, "the result itself"


def test_a_sketch_gives_up_columns_before_it_gives_up():
    stored = layer(1_000_000, 768, 768)
    widths = [
        plan_method(stored, 512, "nystroem", passes=1, max_memory=gigabytes << 30).width for gigabytes in (8, 4, 3, 2)
    ]
    assert widths[0] == 3 * 512 and widths == sorted(widths, reverse=True) and widths[-1] == 522


@pytest.mark.parametrize("method", METHODS)
def test_work_grows_with_the_rows_and_the_width_with_the_rank(method):
    few, many = (
        plan_method(layer(count, 48, 48), 64, method, passes=3, max_memory=MEMORY) for count in (2_500, 3_500)
    )
    assert many.flops > few.flops > 0
    assert few.passes == (3 if method == "randomized" else 1)
    assert few.width >= few.rank == 64


def test_the_chosen_method_takes_less_work_than_the_published_one():
    for sizes, rank in (((20_000, 48, 48), 2048), ((5_000, 192, 192), 1024), ((100_000, 192, 192), 512)):
        stored = layer(*sizes)
        assert 2 * plan_fit(stored, rank).flops < published_flops(stored, rank)
