"""How the curvature of one layer is fitted: the method that its sizes and the memory at hand call for."""

from collections.abc import Iterator
from dataclasses import dataclass

from .gradients import BLOCK_NUMBERS, StoredGradients
from .gram import folds, iterates, iteration_width
from .sketching import OVERSAMPLE


MEMORY = 2 << 30  # bytes that a fit may take where nobody says how many
EXACT_LIMIT = 4096  # largest D (or N) whose matrix is formed whatever a sketch would cost
SKETCH_RANKS = (3.0, 2.5, 2.0, 1.5)  # columns of a Nystroem sketch, in units of r: the first that fits
_PUBLISHED_PASSES = 5  # of a randomised SVD: a covariance product, three power rounds, the projection
_BYTES_PER_NUMBER = 32  # of a block: as stored, as float32, expanded, and once more in float64


@dataclass(frozen=True)
class Plan:
    """One way to fit one layer.

    Args:
        method (`str`): `"gram"`, `"dual"` (both exact) or `"nystroem"` (a sketch).
        rank (`int`): r, capped at min(N, D).
        width (`int`): columns of the sketch or of the iteration; r where there is neither.
        block (`int`): numbers of a block of expanded gradients.
        memory (`int`): bytes at the peak, of eigenpairs and self-influence together.
        flops (`float`): of all this, roughly, in float32 operations of a matrix product.
    """

    method: str
    rank: int
    width: int
    block: int
    memory: int
    flops: float


def plan_fit(stored: StoredGradients, rank: int | None, *, max_memory: int | None = None) -> Plan:
    """The method for a layer, by its sizes; what is stored is not read.

    The smaller of the two exact matrices (D x D or N x N) where it fits the memory and is small or costs no more than
    the published five-pass randomised SVD would. Else a Nystroem sketch, in one pass. Where nothing fits, the least
    that works: compare its `memory`.

    Args:
        stored (`StoredGradients`): the layer.
        rank (`int` or `None`): r; `None` keeps every direction.
        max_memory (`int`, *optional*): bytes, 2 GiB by default.
    """
    rank = min(rank or stored.dim, stored.dim, stored.count)
    exact = "gram" if stored.dim <= stored.count else "dual"
    cheap = _flops(exact, stored, rank, rank) <= published_flops(stored, rank)
    formed = cheap or min(stored.dim, stored.count) <= EXACT_LIMIT
    budget = MEMORY if max_memory is None else max_memory
    plans = [
        plan_method(stored, rank, method, max_memory=budget)
        for method in ((exact, "nystroem") if formed else ("nystroem", exact))
    ]
    return next((plan for plan in plans if plan.memory <= budget), min(plans, key=lambda plan: plan.memory))


def plan_method(stored: StoredGradients, rank: int, method: str, *, max_memory: int) -> Plan:
    """One method for a layer, as wide as the memory allows; the least that works where none does.

    Args:
        stored (`StoredGradients`): the layer.
        rank (`int`): r, at most min(N, D).
        method (`str`): one of those of [`Plan`].
        max_memory (`int`): bytes.
    """
    plans = []
    for width in _widths(method, stored, rank):
        flops = _flops(method, stored, rank, width) + _influence_flops(method, stored, rank)
        for block in _blocks(method, stored, width):
            memory = _memory(method, stored, rank, width) + _BYTES_PER_NUMBER * block
            plans.append(Plan(method, rank, width, block, memory, flops))
    return next((plan for plan in plans if plan.memory <= max_memory), min(plans, key=lambda plan: plan.memory))


def published_flops(stored: StoredGradients, rank: int) -> float:
    """What the published randomised SVD would take."""
    count, dim, width = float(stored.count), float(stored.dim), min(rank + OVERSAMPLE, stored.dim)
    return (4 * _PUBLISHED_PASSES - 2) * count * dim * width + 8 * (_PUBLISHED_PASSES - 1) * dim * width**2


def _widths(method: str, stored: StoredGradients, rank: int) -> list[int]:
    least = min(rank + OVERSAMPLE, stored.dim)
    size = min(stored.dim, stored.count)
    if method == "nystroem":
        return [min(max(int(times * rank), least), size) for times in SKETCH_RANKS] + [min(least, size)]
    return [iteration_width(size, rank) if iterates(size, rank) else rank]


def _blocks(method: str, stored: StoredGradients, width: int) -> Iterator[int]:
    """Numbers of a block, from the best down to the least: one example, or one row of all of them."""
    least = 2 * stored.dim
    if method == "gram" and folds(stored):
        least *= 3
    if method == "dual":
        least = max(least, stored.count * stored.d2)
    if method == "nystroem":
        least = max(least, 2 * stored.d2 * width)
    block = BLOCK_NUMBERS
    while block > least:
        yield block
        block //= 4
    yield least


def _memory(method: str, stored: StoredGradients, rank: int, width: int) -> int:
    """Bytes beside the block, as the docstring of each method has them; then those of the self-influence."""
    count, dim = stored.count, stored.dim
    result = 4 * dim * rank
    influence = 2 * result + (4 * dim**2 if 2 * rank > dim else 0)
    if method == "nystroem":
        return max(4 * dim * width + result + 48 * width**2, influence)
    size = min(dim, count)
    matrix = 12 * size**2 + 40 * size * width if iterates(size, rank) else 32 * size**2
    if method == "gram":
        return max(matrix, influence)
    factors = stored.size * (4 if stored.factor_rank is None else 12)
    return count * factors + max(matrix, result + 36 * count * rank)


def _influence_flops(method: str, stored: StoredGradients, rank: int) -> float:
    if method == "dual":
        return 0.0
    return 2.0 * stored.count * stored.dim * (stored.dim if 2 * rank > stored.dim else rank)


def _flops(method: str, stored: StoredGradients, rank: int, width: int) -> float:
    count, dim = float(stored.count), float(stored.dim)
    if method == "nystroem":
        return 2 * count * dim * width + 12 * dim * width**2
    size = min(dim, count)
    # A decomposition in float64 takes as long as 24 n^3 operations of a product in float32.
    solve = 16 * size**2 * width + 40 * size * width**2 if iterates(int(size), rank) else 24 * size**3
    if method == "gram":
        return (0.5 if folds(stored) else 1.25) * count * dim**2 + solve
    entry = min(dim, (stored.factor_rank or 1) * stored.size)
    return 2.5 * count**2 * entry + solve + 2 * count * dim * rank
