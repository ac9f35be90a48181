"""Which method sizes and memory call for."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorif_hf.algebra.gradients import BLOCK_NUMBERS, StoredGradients
from lorif_hf.algebra.planning import MEMORY, plan_fit, plan_method, published_flops


METHODS = ["gram", "dual", "nystroem"]


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
    assert plan.method == method and plan.memory <= MEMORY
    assert plan.block == BLOCK_NUMBERS


def test_the_rank_is_capped_and_none_keeps_all():
    assert plan_fit(layer(50, 6, 8), None).rank == 48
    assert plan_fit(layer(50, 6, 8), 500).rank == 48
    assert plan_fit(layer(20, 6, 8), 500).rank == 20
    assert plan_fit(layer(20, 6, 8), 3).rank == 3


@pytest.mark.parametrize("sizes", [(20_000, 48, 48), (5_000, 192, 192), (100_000, 192, 192), (5_000, 192, 192, None)])
def test_less_memory_gives_leaner_plans_down_to_the_least(sizes):
    stored, rank = layer(*sizes), 256
    least = plan_fit(stored, rank, max_memory=0)
    memories = [least.memory + step * (MEMORY - least.memory) // 8 for step in range(9)]
    plans = [plan_fit(stored, rank, max_memory=memory) for memory in memories]
    assert plans[0] == least
    assert all(plan.memory <= memory for plan, memory in zip(plans, memories, strict=True))
    assert plan_fit(stored, rank, max_memory=least.memory - 1) == least
    assert least.memory >= 4 * stored.dim * rank, "the result itself"


def test_a_sketch_gives_up_columns_before_it_gives_up():
    stored = layer(1_000_000, 768, 768)
    widths = [plan_method(stored, 512, "nystroem", max_memory=gigabytes << 30).width for gigabytes in (8, 4, 3, 2)]
    assert widths[0] == 3 * 512 and widths == sorted(widths, reverse=True) and widths[-1] == 522


@pytest.mark.parametrize("method", METHODS)
def test_work_grows_with_the_rows_and_the_width_with_the_rank(method):
    few, many = (plan_method(layer(count, 48, 48), 64, method, max_memory=MEMORY) for count in (2_500, 3_500))
    assert many.flops > few.flops > 0
    assert few.width >= few.rank == 64


def test_the_chosen_method_takes_less_work_than_the_published_one():
    for sizes, rank in (((20_000, 48, 48), 2048), ((5_000, 192, 192), 1024), ((100_000, 192, 192), 512)):
        stored = layer(*sizes)
        assert 2 * plan_fit(stored, rank).flops < published_flops(stored, rank)


PEAK = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lorif_hf.algebra.curvature import fit, self_influence
from lorif_hf.algebra.gradients import StoredGradients
from lorif_hf.algebra.planning import plan_method

def fitted(method, count, d1, d2, rank):
    left, right = torch.randn(count, d1, 1), torch.randn(count, d2, 1)
    blocks = lambda rows: ((left[i : i + rows], right[i : i + rows]) for i in range(0, count, rows))
    stored = StoredGradients(blocks, count, d1, d2, 1)
    plan = plan_method(stored, rank, method, max_memory=1 << 40)
    plan = replace(plan, block=1 << 18, memory=plan.memory - 32 * (plan.block - (1 << 18)))
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    found = fit(stored, plan, damping=0.5)
    for one, other in blocks(1 << 18):
        self_influence(one, other, found, plan.block)
    return held("VmHWM") - before, plan.memory

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

fitted(sys.argv[1], 400, 20, 20, 100)  # what the libraries take for themselves
print(*fitted(sys.argv[1], *map(int, sys.argv[2:])))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read as Linux tells them")
@pytest.mark.parametrize(
    "method, sizes",
    [
        ("gram", (2000, 30, 30, 700)),
        ("gram", (6000, 30, 30, 700)),
        ("gram", (3000, 36, 36, 100)),
        ("dual", (1500, 64, 64, 1000)),
        ("dual", (1500, 64, 64, 100)),
        ("nystroem", (2000, 64, 128, 200)),
        ("nystroem", (4000, 64, 128, 200)),
    ],
)
def test_the_peak_is_within_what_the_plan_says(method, sizes):
    command = [sys.executable, "-c", PEAK, method, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, planned = map(int, done.stdout.split())
    assert peak <= planned + (12 << 20), f"{peak / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB"
    assert planned < 4 * peak, "a bound that says nothing"
