"""Whitening a layer's gradients by the second moments of its inputs and output gradients."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .statistic import Statistic, added


_NOISE = 1e-4  # a gradient this much smaller than its example's largest is none: rounding of 5e-5 has been seen
_SYMMETRIC = 512  # the widest side whose whitener is the symmetric root


@dataclass
class SecondMoments(Statistic):
    """Sums over tokens of x x^T and dy dy^T of one layer, in the projected space.

    Positions at which no gradient comes back (padding, a token after which nothing is predicted) do not count.

    Sums are kept where the layer computes, and nothing waits for them.

    Args:
        inputs (`Tensor` or `None`): A, float32 (d1, d1); `None`: another layer with the same inputs has it.
        outputs (`Tensor`): S, float32 (d2, d2).
        tokens (`Tensor`): T, positions counted, float64 ().
    """

    inputs: Tensor | None
    outputs: Tensor
    tokens: Tensor

    @classmethod
    def zeros(cls, d1: int | None, d2: int) -> "SecondMoments":
        """`d1`: `None` leaves the inputs out."""
        inputs = None if d1 is None else torch.zeros(d1, d1)
        return cls(inputs, torch.zeros(d2, d2), torch.zeros((), dtype=torch.int64))

    def of(self, inputs: Tensor, output_gradients: Tensor) -> "SecondMoments":
        """Those of some tokens: (..., T, d1) and (..., T, d2)."""
        counts = counted(output_gradients.abs().amax(dim=-1).float())
        sums = []
        for side in (None if self.inputs is None else inputs, output_gradients):
            # Zeros instead of fewer rows: how many count is not known without waiting for the device.
            rows = None if side is None else side.flatten(0, -2).float().where(counts.unsqueeze(1), 0)
            sums.append(None if rows is None else rows.T @ rows)
        assert sums[1] is not None
        return SecondMoments(sums[0], sums[1], counts.sum())

    def add(self, other: "SecondMoments") -> None:
        """Take in other tokens of the same layer."""
        if self.inputs is not None and other.inputs is not None:
            self.inputs = added(self.inputs, other.inputs)
        self.outputs = added(self.outputs, other.outputs)
        self.tokens = added(self.tokens, other.tokens)


def counted(sizes: Tensor) -> Tensor:
    """Which tokens have a gradient, by the sizes (..., T) of what comes back to them: bool, flattened.

    Where a gradient cancels (the query of a first token, which attends to itself alone), rounding is left of it.
    """
    return (sizes > _NOISE * sizes.amax(dim=-1, keepdim=True)).flatten()


def whiteners(moments: SecondMoments, *, damping: float, scale: float = 1.0) -> tuple[Tensor | None, Tensor]:
    """The two whiteners of a layer: W = in_whitener^T G~ out_whitener is what is stored instead of G~.

    With A' = A / T and S' = `scale` S the sum over examples of vec(G~) vec(G~)^T is about A' (x) S', so that inner
    products of whitened gradients are those of G~ under its inverse, in the same unit as every other score.

    Args:
        moments (`SecondMoments`): of some examples.
        damping (`float`): this times the mean eigenvalue is added to each of A' and S'.
        scale (`float`, *optional*, defaults to 1.0): all examples over those in `moments`.

    Returns:
        `tuple[Tensor | None, Tensor]`: of A' (d1, d1), `None` where the moments have none, and of S' (d2, d2), as
        [`damped_whitener`] makes them.

    Raises:
        `ValueError`: a moment is not finite.

    Source: K-FAC (Martens and Grosse 2015, arXiv:1503.05671) for the factored curvature; the truncation in its metric
    is ours.
    """
    inputs = None if moments.inputs is None else moments.inputs / moments.tokens.clamp_min(1)
    return (
        None if inputs is None else damped_whitener(inputs, damping),
        damped_whitener(moments.outputs, damping, scale),
    )


def damped_whitener(moment: Tensor, damping: float, scale: float = 1.0) -> Tensor:
    """W with W W^T = (`scale` M + damping mean(`scale` M))^-1 of a moment M (d, d), float32 on the CPU.

    Up to a width of 512 the symmetric root: what it leaves of a gradient in its first pairs of signs predicts
    retraining best (`python -m benchmarks.quality wikitext`: 0.459 against 0.444 with three pairs). Beyond, where its
    eigenvectors would take longer than all the rest of a build, the inverse of a Cholesky factor and after it a
    rotation that spreads what it makes over all coordinates, in a tenth of the time. Without the rotation most
    coordinates are small (what those before them leave is little beside the damping), and a code of a bit for each
    number wastes its bits on them; with it, wide layers are as near to whole K-FAC as with the symmetric root
    (`python -m benchmarks.fidelity`). The identity where there is no moment.

    Raises:
        `ValueError`: the moment is not finite.
    """
    moment = moment.to(torch.float64 if moment.device.type != "mps" else moment.dtype) * scale
    mean = float(moment.diagonal().mean())
    if not math.isfinite(float(moment.sum())) or not math.isfinite(mean):
        raise ValueError("a second moment is not finite")
    strength = damping * mean
    if strength < torch.finfo(torch.float32).tiny:
        return torch.eye(len(moment))
    damped = (moment / mean).cpu().double()
    damped.diagonal().add_(damping)
    if len(damped) > _SYMMETRIC:
        factor, failed = torch.linalg.cholesky_ex(damped)
        # Of little damping, rounding in float32 sums may have left an eigenvalue below zero.
        if not int(failed):
            identity = torch.eye(len(factor), dtype=factor.dtype)
            inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
            return (inverse.T / mean**0.5).float() @ _cosines(len(factor))
    values, vectors = torch.linalg.eigh(damped)
    root = (vectors * values.clamp_min(damping).rsqrt()) @ vectors.T
    return (root / mean**0.5).float()


@functools.lru_cache(maxsize=4)  # a layer has two sizes, a model few
def _cosines(size: int) -> Tensor:
    """The orthogonal matrix (d, d) of the discrete cosine transform, its waves as columns, float32."""
    places = torch.arange(size, dtype=torch.float64)
    waves = torch.cos((2 * places.unsqueeze(1) + 1) * places * (math.pi / (2 * size))) * (2 / size) ** 0.5
    waves[:, 0] *= 0.5**0.5
    return waves.float()
