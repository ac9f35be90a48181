"""Whitening a layer's gradients by the second moments of its inputs and output gradients."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .statistic import Statistic


_NOISE = 1e-4  # a gradient this much smaller than its example's largest is none: rounding of 5e-5 has been seen


@dataclass
class SecondMoments(Statistic):
    """Sums over tokens of x x^T and dy dy^T of one layer, in the projected space.

    Positions at which no gradient comes back (padding, a token after which nothing is predicted) do not count.

    Args:
        inputs (`Tensor`): A, float64 (d1, d1).
        outputs (`Tensor`): S, float64 (d2, d2).
        tokens (`int`): T, positions counted.
    """

    inputs: Tensor
    outputs: Tensor
    tokens: int = field(default=0)

    @classmethod
    def zeros(cls, d1: int, d2: int) -> "SecondMoments":
        return cls(torch.zeros(d1, d1, dtype=torch.float64), torch.zeros(d2, d2, dtype=torch.float64))

    @classmethod
    def of(cls, inputs: Tensor, output_gradients: Tensor) -> "SecondMoments":
        """Those of some tokens: (..., T, d1) and (..., T, d2)."""
        counts = counted(output_gradients.abs().amax(dim=-1).float())
        inputs, output_gradients = inputs.flatten(0, -2), output_gradients.flatten(0, -2)
        inputs, output_gradients = inputs[counts].float(), output_gradients[counts].float()
        sides = [(side.T @ side).to("cpu", torch.float64) for side in (inputs, output_gradients)]
        return cls(sides[0], sides[1], int(counts.sum()))

    def add(self, other: "SecondMoments") -> None:
        """Take in other tokens of the same layer."""
        self.inputs += other.inputs
        self.outputs += other.outputs
        self.tokens += other.tokens


def counted(sizes: Tensor) -> Tensor:
    """Which tokens have a gradient, by the sizes (..., T) of what comes back to them: bool, flattened.

    Where a gradient cancels (the query of a first token, which attends to itself alone), rounding is left of it.
    """
    return (sizes > _NOISE * sizes.amax(dim=-1, keepdim=True)).flatten()


def inverse_roots(moments: SecondMoments, *, damping: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The two whiteners of a layer: W = in_whitener G~ out_whitener is what is stored instead of G~.

    With A' = A / T and S' = `scale` S the sum over examples of vec(G~) vec(G~)^T is about A' (x) S', so that inner
    products of whitened gradients are those of G~ under its inverse, in the same unit as every other score.

    Args:
        moments (`SecondMoments`): of some examples.
        damping (`float`): this times the mean eigenvalue is added to each of A' and S'.
        scale (`float`, *optional*, defaults to 1.0): all examples over those in `moments`.

    Returns:
        `tuple[Tensor, Tensor]`: (A' + damping mean(A') I)^-1/2 of shape (d1, d1), the same of S' (d2, d2), float32,
        symmetric. The identity where a side has no moment at all: its gradients are zero.

    Raises:
        `ValueError`: a moment is not finite.

    Source: K-FAC (Martens and Grosse 2015, arXiv:1503.05671) for the factored curvature; the truncation in its metric
    is ours.
    """
    tokens = max(1, moments.tokens)
    return (
        damped_inverse_root(moments.inputs / tokens, damping),
        damped_inverse_root(moments.outputs * scale, damping),
    )


def damped_inverse_root(moment: Tensor, damping: float) -> Tensor:
    """(M + damping mean(M) I)^-1/2 of a moment (d, d), float32; the identity where there is none.

    Raises:
        `ValueError`: the moment is not finite.
    """
    if not bool(torch.isfinite(moment).all()):
        raise ValueError("a second moment is not finite")
    eigenvalues, eigenvectors = torch.linalg.eigh(moment.double())
    eigenvalues = eigenvalues.clamp_min(0)
    strength = damping * float(eigenvalues.mean())
    if strength < torch.finfo(torch.float32).tiny:
        return torch.eye(len(moment))
    return ((eigenvectors * (eigenvalues + strength).rsqrt()) @ eigenvectors.T).float()
