"""Small pictures inside a page: where scores stand among all, and which layers a score comes from. SVG, no script."""

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from .distribution import ScoreDistribution


_WIDTH, _HEIGHT = 240, 44  # of a histogram, with the ticks below it
_TICKS = 8
_MOST_BARS = 64  # of a strip of layers; neighbours are added up beyond that


def histogram(distribution: ScoreDistribution, shown: Sequence[float]) -> Markup:
    """The scores of all rows, on a logarithmic scale so that single rows are seen, with a tick for each row shown."""
    low, high = distribution.edges[0], distribution.edges[-1]
    span, base = (high - low) or 1.0, _HEIGHT - _TICKS
    tallest = math.log1p(max(distribution.counts, default=0)) or 1.0
    bars = []
    for (left, right), count in zip(pairwise(distribution.edges), distribution.counts, strict=True):
        if count:
            x, width = _WIDTH * (left - low) / span, max(_WIDTH * (right - left) / span, 1.0)
            height = max(base * math.log1p(count) / tallest, 1.5)
            bars.append(f"M{x:.1f} {base}v-{height:.1f}h{width:.1f}v{height:.1f}z")
    marks = {round(_WIDTH * min(max((score - low) / span, 0.0), 1.0), 1): score >= 0 for score in shown}
    ticks = "".join(
        f'<path class=lf-{"pro" if positive else "con"} d="M{x} {base + 1}l-3 7h6z"/>' for x, positive in marks.items()
    )
    zero = f'<path class=lf-zero d="M{_WIDTH * -low / span:.1f} 0v{base}"/>' if low < 0 < high else ""
    label = f"Histogram of the scores of all {distribution.count:,} rows, from {low:.3g} to {high:.3g}"
    return Markup(
        f'<svg class=lf-histogram role=img aria-label="{label}" viewBox="-4 0 {_WIDTH + 8} {_HEIGHT}">'
        f'{zero}<path class=lf-bins d="{"".join(bars)}"/>{ticks}</svg>'
    )


def layer_strip(scores: Sequence[float]) -> Markup:
    """One bar a layer, from the first to the last: up where it adds to the score, down where it takes from it."""
    bins = min(len(scores), _MOST_BARS)
    edges = [round(place * len(scores) / bins) for place in range(bins + 1)] if bins else []
    sums = [sum(scores[start:stop]) for start, stop in pairwise(edges)]
    largest = max(map(abs, sums), default=0.0) or 1.0
    paths = {"pro": "", "con": ""}
    for place, value in enumerate(sums):
        height = round(10 * value / largest, 1)
        if height:
            paths["pro" if height > 0 else "con"] += f"M{place} 10v{-height:g}h.8v{height:g}"
    drawn = "".join(f'<path class=lf-{side} d="{path}z"/>' for side, path in paths.items() if path)
    return Markup(
        f'<svg class=lf-strip aria-hidden=true viewBox="0 0 {bins or 1} 20" preserveAspectRatio=none>{drawn}</svg>'
    )


def chance_maximum(count: int) -> float:
    """Where the largest of so many normally distributed values is expected, in standard deviations (Blom 1958).

    Example:

    >>> round(chance_maximum(1000), 2)
    3.23
    """
    from statistics import NormalDist

    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
