"""How scores are spread that come block by block, in any order: mean, standard deviation and a histogram."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .devices import on_cpu, widest


BINS = 128
_FINEST, _FLOAT_BITS = -126, 24  # no bin is finer than 2^-126, or than float32 near the largest score
_TOGETHER = 1 << 20  # scores that are looked at together
_NOWHERE = -(1 << 20)  # the exponent of a range of width zero


@dataclass(frozen=True)
class Spread:
    """How the scores of one query are spread.

    Args:
        count (`int`): how many there are.
        mean, standard_deviation (`float`): over all of them.
        edges (`list[float]`): B + 1 ascending bounds of bins of the same width, a power of two.
        counts (`list[int]`): B, how many scores are at least a bin's lower bound and below its upper one.
    """

    count: int
    mean: float
    standard_deviation: float
    edges: list[float]
    counts: list[int]


class RunningDistribution:
    """Mean, standard deviation and histogram of a stream of score blocks, per query, in memory that does not grow.

    Sums are in float64. The bins of a histogram are as wide as the smallest power of two with which `BINS` of them,
    which begin at multiples of it, cover all scores: two neighbours become one where the range grows, so that counts
    are exact and do not depend on the order of the blocks. Nothing waits for the device on which it is.

    Args:
        queries (`int`): Q.
        device (`torch.device`, *optional*): where the blocks are; by default the CPU, and there as well where the
            device has no float64.
    """

    def __init__(self, queries: int, device: torch.device = torch.device("cpu")):  # noqa: B008
        self.device = device if widest(device) == torch.float64 else torch.device("cpu")
        self.count = 0
        self._mean, self._squares = torch.zeros(2, queries, dtype=torch.float64, device=self.device)
        self._low, self._high = torch.full_like(self._mean, torch.inf), torch.full_like(self._mean, -torch.inf)
        self._exponent = torch.full((queries,), _FINEST, dtype=torch.int64, device=self.device)
        self._first = torch.zeros_like(self._exponent)  # the first bin, counted from zero in bins
        self._counts = torch.zeros(queries, BINS, dtype=torch.int64, device=self.device)

    def update(self, scores: Tensor) -> None:
        """Take in scores, (Q, n), finite."""
        if not scores.numel():
            return
        scores = scores.to(self.device)
        runs = scores.split(max(1, _TOGETHER // scores.shape[1]))  # of queries: what is made of them is in float64
        mean = torch.cat([run.double().mean(dim=1) for run in runs])
        centres = mean.unsqueeze(1).split(len(runs[0]))
        squares = [(run - centre).square().sum(dim=1) for run, centre in zip(runs, centres, strict=True)]
        self._widen(scores.amin(dim=1).double(), scores.amax(dim=1).double())
        scales, firsts = (part.unsqueeze(1).split(len(runs[0])) for part in (_power(-self._exponent), self._first))
        one = torch.ones((), dtype=torch.int64, device=self.device)
        for run, scale, first, counts in zip(runs, scales, firsts, self._counts.split(len(runs[0])), strict=True):
            # What is not finite is in no bin; whoever scores refuses it.
            bins = ((run * scale).floor_().long() - first).clamp_(0, BINS - 1)
            counts.scatter_add_(1, bins, one.expand_as(bins))
        self._join(scores.shape[1], mean, torch.cat(squares))

    def merge(self, other: "RunningDistribution") -> None:
        """Take in what another one has seen, on the same device."""
        if not other.count:
            return
        self._widen(other._low, other._high)
        self._counts += _rebinned(other._counts, other._first, other._exponent, self._first, self._exponent)
        self._join(other.count, other._mean, other._squares)

    def tensors(self) -> list[Tensor]:
        """All that it holds, to be brought to the CPU together with something else."""
        return [self._mean, self._squares, self._low, self._high, self._exponent, self._first, self._counts]

    def spreads(self, tensors: list[Tensor] | None = None) -> list[Spread]:
        """How the scores of each query are spread; none where no score came.

        Args:
            tensors (`list[Tensor]`, *optional*): those of [`~RunningDistribution.tensors`], on the CPU.
        """
        if not self.count:
            return []
        mean, squares, low, high, exponents, first, counts = tensors or on_cpu(self.tensors())
        widths = _power(exponents)
        # The bins that hold the lowest and the highest score: outside of them there is none.
        starts, stops = (low / widths).floor().long() - first, (high / widths).floor().long() - first + 1
        spreads = []
        for query, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            edges = (torch.arange(start, stop + 1) + first[query]).double() * widths[query]
            deviation = float((squares[query] / self.count).sqrt())
            held = counts[query, start:stop].tolist()
            spreads.append(Spread(self.count, float(mean[query]), deviation, edges.tolist(), held))
        return spreads

    def _widen(self, low: Tensor, high: Tensor) -> None:
        """Make room for scores from `low` to `high`, (Q,)."""
        low, high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        exponent = _bin_exponent(low, high)
        first = (low * _power(-exponent)).floor().long()
        self._counts = _rebinned(self._counts, self._first, self._exponent, first, exponent)
        self._low, self._high, self._exponent, self._first = low, high, exponent, first

    def _join(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Source: Chan, Golub, LeVeque 1979, updating formulae for sums of squares."""
        total = self.count + count
        delta = mean - self._mean
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self.count = total


def _power(exponents: Tensor) -> Tensor:
    """2 to some whole numbers between -1022 and 1023, float64, exactly."""
    return ((exponents + 1023) << 52).view(torch.float64)


def _exponent_above(values: Tensor) -> Tensor:
    """Of positive numbers the smallest e with a number below 2^e; of zero one far below all."""
    exponents = (values.view(torch.int64) >> 52) - 1022
    return torch.where(values > 0, exponents, _NOWHERE)


def _bin_exponent(low: Tensor, high: Tensor) -> Tensor:
    """The exponent of the width of bins that cover a range: the smallest with which `BINS` suffice."""
    largest = torch.maximum(low.abs(), high.abs())
    finest = (_exponent_above(largest) - _FLOAT_BITS).clamp_min(_FINEST)
    # A range is narrower than BINS bins of this width, and meets one more at most.
    exponent = torch.maximum(_exponent_above(high - low) - (BINS.bit_length() - 1), finest)
    scale = _power(-exponent)
    met = (high * scale).floor() - (low * scale).floor()
    return exponent + (met >= BINS).long()


def _rebinned(counts: Tensor, first: Tensor, exponent: Tensor, new_first: Tensor, new_exponent: Tensor) -> Tensor:
    """Counts (Q, BINS) of bins in wider ones, or in the same ones from another first on."""
    bins = torch.arange(BINS, device=counts.device) + first.unsqueeze(1)
    bins = (bins >> (new_exponent - exponent).clamp(0, 62).unsqueeze(1)) - new_first.unsqueeze(1)
    return torch.zeros_like(counts).scatter_add_(1, bins.clamp_(0, BINS - 1), counts)
