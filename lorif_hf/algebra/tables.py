"""Whitening the gradients of a table V x H, such as an embedding: the side of V is too wide for a second moment, of
which the diagonal is taken instead, before that side is projected."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .sides import OneHot, Side, as_vectors
from .statistic import Statistic, added
from .whitening import counted, damped_whitener


@dataclass
class TableMoments(Statistic):
    """Sums over tokens of x^2, entry by entry, and of dy dy^T in the projected space, for either use of a table:
    tokens look up its rows, and an output head that shares it multiplies with all of it. The numbers of the two uses
    are of different sizes, so that they are added up apart.

    Positions at which no gradient comes back do not count.

    Args:
        inputs (`Tensor`): diag(A), float32 (2, V). Of lookups, how often each row was looked up; of products, the sums
            of the squared gradients with regard to the logits.
        outputs (`Tensor`): S, float32 (2, d2, d2). Of products it is that of the head's inputs.
        tokens (`Tensor`): T, int64 (2,), positions counted.
    """

    inputs: Tensor
    outputs: Tensor
    tokens: Tensor
    takes_wide: ClassVar[bool] = True

    @classmethod
    def zeros(cls, rows: int, d2: int) -> "TableMoments":
        return cls(torch.zeros(2, rows), torch.zeros(2, d2, d2), torch.zeros(2, dtype=torch.int64))

    def of(self, inputs: Side, output_gradients: Tensor) -> "TableMoments":
        """Those of a call: its inputs as they are, (n, T, V), and its output gradients (n, T, d2)."""
        lookup = isinstance(inputs, OneHot)
        vectors = inputs.entries(torch.float32).unsqueeze(2) if isinstance(inputs, OneHot) else as_vectors(inputs)
        # Either side may be what comes back.
        counts = counted(vectors.abs().amax(dim=2).float() * output_gradients.abs().amax(dim=2).float()).unsqueeze(1)
        squares = vectors.flatten(0, 1).float().square().where(counts, 0)
        if isinstance(inputs, OneHot):
            ids = inputs.ids.flatten().clamp_min(0)
            diagonal = torch.zeros(inputs.size, device=ids.device).index_add_(0, ids, squares[:, 0])
        else:
            diagonal = squares.sum(dim=0)
        outputs = output_gradients.flatten(0, 1).float().where(counts, 0)
        sums = diagonal, outputs.T @ outputs, counts.sum()
        return TableMoments(*(_of_use(0 if lookup else 1, value) for value in sums))

    def add(self, other: "TableMoments") -> None:
        """Take in other tokens of the same layer."""
        self.inputs = added(self.inputs, other.inputs)
        self.outputs = added(self.outputs, other.outputs)
        self.tokens = added(self.tokens, other.tokens)


def _of_use(use: int, value: Tensor) -> Tensor:
    """(2, ...): a sum of one use beside zero of the other."""
    return torch.stack([value if use == number else torch.zeros_like(value) for number in range(2)])


def table_roots(moments: TableMoments, *, damping: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The two whiteners of a table: W = (D X P_in)^T (dY P_out) out_whitener, D = diag(in_scale), is stored of it.

    With A' = diag(A) / T and S' = `scale` S of each use, the sum over examples of vec(G~) vec(G~)^T is about
    A'_1 (x) S'_1 + A'_2 (x) S'_2, for which (A'_1 + p A'_2) (x) (S'_1 + S'_2 / p) is taken. Its trace is larger by
    p tr(A'_2) tr(S'_1) + tr(A'_1) tr(S'_2) / p, and p is where that is least.

    Args:
        moments (`TableMoments`): of some examples.
        damping (`float`): this times the mean eigenvalue is added to each of the two.
        scale (`float`, *optional*, defaults to 1.0): all examples over those in `moments`.

    Returns:
        `tuple[Tensor, Tensor]`: in_scale (V,), (A' + damping mean(A'))^-1/2, and out_whitener (d2, d2) as
        [`~lorif_hf.algebra.whitening.damped_whitener`] makes it; float32. Ones and the identity where a side has no
        moment at all.

    Raises:
        `ValueError`: a moment is not finite.

    Source: Martens and Grosse 2015 (arXiv:1503.05671), section 6.3, where the second product is the damping.
    """
    inputs, outputs = moments.inputs.cpu().double(), moments.outputs.cpu().double() * scale
    diagonals = inputs / moments.tokens.cpu().clamp_min(1).unsqueeze(1)
    sizes = diagonals.sum(dim=1), outputs.diagonal(dim1=1, dim2=2).sum(dim=1)
    ratio = float((sizes[0][0] * sizes[1][1] / (sizes[0][1] * sizes[1][0])).sqrt())
    if not bool(torch.isfinite(diagonals).all()):
        raise ValueError("a second moment is not finite")
    if not 0 < ratio < float("inf"):
        ratio = 1.0  # a use without a token, or one that is all there is
    diagonal = diagonals[0] + ratio * diagonals[1]
    strength = damping * float(diagonal.mean())
    in_scale = (
        (diagonal + strength).rsqrt() if strength >= torch.finfo(torch.float32).tiny else torch.ones(len(diagonal))
    )
    return in_scale.float(), damped_whitener(outputs[0] + outputs[1] / ratio, damping)
