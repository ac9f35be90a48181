"""How good an index of a config is expected to be: what the benchmarks measured, and between that, by interpolation.

The figures are the linear datamodeling scores of benchmarks/RESULTS.md (a), where layers are kept at their full width,
and what narrower sides cost beside them: correlations with the whole K-FAC influence (`benchmarks.fidelity`). They
order configs; no index is promised such a score.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from ..config import InfluenceConfig
from ..storage.layout import ModuleEntry


# Pairs at 1 bit -> LDS; two lie between their neighbours.
_PAIRS = {1: 0.359, 2: 0.422, 3: 0.459, 4: 0.483, 8: 0.545, 16: 0.597}
# What more bits multiply it with, by the pairs: 2 bits with 2 and 8 pairs, 4 bits with 8, 16 bits with 1.
_BITS = {
    1: {1: 1.0},
    2: {1: 1.01, 2: 1.066, 8: 1.083, 16: 1.05},
    4: {1: 1.013, 2: 1.07, 8: 1.095, 16: 1.06},
    8: {1: 1.013, 2: 1.07, 8: 1.096, 16: 1.061},
    16: {1: 1.013, 2: 1.07, 8: 1.096, 16: 1.061},
}
# What is left of it where a side is folded to so many numbers, beside 768: on layers of 2,048 x 2,048, 4,096 x 4,096
# and a trained 768 x 3,072; 32 to 128 by the slope from 512 to 256.
_SIDES = {32: 0.40, 64: 0.54, 128: 0.67, 256: 0.81, 512: 0.935, 768: 1.0, 1024: 1.06, 2048: 1.14, 3072: 1.25}
_UNWHITENED = 0.6  # (a) 0.36, (c) 0.87; on (b), a gentle fine-tuning, it is 1.24


def expected_quality(config: InfluenceConfig, entries: Sequence[ModuleEntry]) -> float:
    """Of an index with factors (`factor_rank` set): comparable among configs for the same model.

    Args:
        config (`InfluenceConfig`): every choice that shapes the index.
        entries (`Sequence[ModuleEntry]`): its layers, as the config projects them.
    """
    pairs = config.factor_rank or max(_PAIRS)
    of_pairs = _between(_PAIRS, pairs) * _between(_BITS[config.bits], pairs)
    sides = sum(math.prod(_left(*side) for side in _sides(entry)) ** 0.5 for entry in entries) / len(entries)
    return of_pairs * sides * (_UNWHITENED if config.whitening == "none" else 1.0)


def _sides(entry: ModuleEntry) -> list[tuple[int, int]]:
    """What a layer's sides have and what is kept of them."""
    return list(zip(entry.widths, (entry.d1, entry.d2), strict=True))


def _left(whole: int, kept: int) -> float:
    """The share of the quality that is left of a side."""
    return 1.0 if kept >= whole else _between(_SIDES, kept) / _between(_SIDES, whole)


def _between(known: dict[int, float], at: int) -> float:
    """The value at a number, between those that are known on a logarithmic scale."""
    for (low, value), (high, other) in pairwise(known.items()):
        if low <= at <= high:
            share = math.log(at / low) / math.log(high / low)
            return value + share * (other - value)
    return known[min(known)] if at < min(known) else known[max(known)]
