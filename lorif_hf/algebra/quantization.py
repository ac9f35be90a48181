"""Factors at 8, 4, 2 or 1 bits a number: packed codes, and one scale for each pair of vectors."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import fixed_normal, widest
from .matrices import LowRankMatrices, Matrices, matrix_sizes, squared_norms, unit


BITS = (8, 4, 2, 1)

_SQUARINGS = 2
_ROUNDS = 2**_SQUARINGS  # of power iteration for each pair: more change nothing that the codes would show
PAIR_PRODUCTS = 2 * _ROUNDS + 4  # matrix-vector products for each pair

# Step of the uniform quantiser that loses least of a normal distribution of variance 1 (Max 1960, table II).
_STEPS = {8: 0.0308, 4: 0.3352, 2: 0.9957, 1: 1.596}


def packed_bytes(length: int, bits: int) -> int:
    """Bytes of one vector of `length` numbers: each vector starts on a byte of its own."""
    return math.ceil(length * bits / 8)


def quantize(vectors: Tensor, bits: int) -> Tensor:
    """The level of each number, on a uniform grid of 2^bits levels around zero that is fitted to its vector's size.

    Args:
        vectors (`Tensor`): (n, d, c), each of the c columns a vector.
        bits (`int`): 8, 4, 2 or 1 (the sign alone).

    Returns:
        `Tensor`: (n, d, c), odd whole numbers from -(2^bits - 1) to 2^bits - 1; the scale is kept apart.
    """
    if bits == 1:
        return torch.copysign(vectors.new_ones(()), vectors)
    half = 1 << (bits - 1)
    size = vectors.square().mean(dim=1, keepdim=True).sqrt()
    step = (size * _STEPS[bits]).clamp_min(torch.finfo(vectors.dtype).tiny)
    return (vectors / step).floor_().clamp_(-half, half - 1).mul_(2).add_(1)


def pack(levels: Tensor, bits: int) -> Tensor:
    """Levels (n, d, c) to bytes (n, c, ceil(d bits / 8)), the first in the lowest bits; the lowest level is 0."""
    count, length, rank = levels.shape
    size, per_byte = packed_bytes(length, bits), 8 // bits
    rows = levels.mT
    if length % per_byte:
        rows = F.pad(rows, (0, size * per_byte - length), value=1 - (1 << bits))
    # A byte is the sum of its codes, (level + 2^bits - 1) / 2, times what their places are worth: exact in float32.
    packed = torch.mv(rows.reshape(-1, per_byte), _worth(bits, levels.device)).add_(127.5)
    return packed.to(torch.uint8).view(count, rank, size)


@functools.cache
def _worth(bits: int, device: torch.device) -> Tensor:
    """Half of what each place in a byte is worth, float32 (8 / bits,)."""
    with torch.inference_mode(False):
        return torch.tensor([2.0 ** (bits * place - 1) for place in range(8 // bits)]).to(device)


def unpack(packed: Tensor, length: int, bits: int) -> Tensor:
    """The levels in bytes (n, c, ceil(d bits / 8)), as float32 (n, c, d).

    Args:
        packed (`Tensor`): uint8, on any device.
        length (`int`): d.
        bits (`int`): 8, 4, 2 or 1.
    """
    count, rank, size = packed.shape
    if not packed.is_cpu:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        most = (1 << bits) - 1
        codes = (packed.unsqueeze(3) >> shifts) & most
        return codes.flatten(2)[:, :, :length].float().mul_(2).sub_(most)
    levels = torch.empty(count, rank, size * 8 // bits)
    look_up(packed.numpy(), bits, levels.numpy())
    return levels[:, :, :length]


def look_up(packed: np.ndarray, bits: int, levels: np.ndarray) -> None:
    """Write the levels in bytes (n, c, s) to a contiguous float32 array (n, c, 8 s / bits).

    NumPy's look-up takes bytes for indices and is twice as fast as torch's; "clip" saves the check of each.
    """
    _table(bits).take(packed, 0, levels.reshape(*packed.shape, 8 // bits), "clip")


@functools.cache
def _table(bits: int) -> np.ndarray:
    """(256, 8 / bits): the levels of every byte."""
    shifts, most = np.arange(0, 8, bits), (1 << bits) - 1
    codes = (np.arange(256)[:, None] >> shifts) & most
    return (2 * codes - most).astype(np.float32)


class QuantizedFactors(NamedTuple):
    """Pairs of quantised vectors that come near to matrices M, sum_j scales_j left_j right_j^T.

    Args:
        left (`Tensor`): levels (n, d1, c).
        right (`Tensor`): levels (n, d2, c).
        scales (`Tensor`): float32 (n, c), those of least squares.
        shares (`Tensor`): float32 (n,), how much of |M|^2 they hold, as [`captured_shares`] tells.
    """

    left: Tensor
    right: Tensor
    scales: Tensor
    shares: Tensor


def quantized_factors(matrices: Matrices, rank: int, bits: int) -> QuantizedFactors:
    """Factorise each matrix into pairs of quantised vectors, one pair after the other, each fitted to what is left.

    A few rounds of power iteration find the direction, two more alternate between the levels of either side. What one
    pair's rounding loses the next one sees: at one bit this comes nearer than quantising the singular vectors, and
    takes fewer products. The scales are fitted together at the end. The start is fixed, and each matrix is treated
    alone.

    Args:
        matrices (`Matrices`): (n, d1, d2).
        rank (`int`): c.
        bits (`int`): 8, 4, 2 or 1.

    Returns:
        [`QuantizedFactors`].

    Source: the semidiscrete decomposition (Kolda and O'Leary 1998), with a grid of 2^bits levels instead of -1, 0, 1.
    """
    matrices = matrices.float() if isinstance(matrices, Tensor) else matrices
    sizes = matrix_sizes(matrices)
    rest: _LowRankRest | _DenseRest
    if isinstance(matrices, LowRankMatrices):
        rest = _LowRankRest(matrices, sizes, rank)
    else:
        rest = _DenseRest(matrices / sizes, rank)

    def rounded(rows: Tensor) -> Tensor:
        return quantize(rows.mT, bits).mT

    for pair in range(rank):
        right = rounded(rest.left_product(rounded(rest.strongest(pair))))
        left = rounded(rest.right_product(right))
        rest.take(pair, left, rounded(rest.left_product(left)))
    left, right = rest.pairs()
    scales = fitted_scales(left, right, rest.targets)
    # The projection of M on the pairs: |sum_j scales_j left_j right_j^T|^2 is its inner product with M.
    captured = (scales.to(rest.squares.dtype) * rest.targets).sum(dim=1)
    shares = captured_shares(captured, rest.squares, rank / min(left.shape[1], right.shape[1]))
    return QuantizedFactors(left, right, scales * sizes.squeeze(2), shares)


def captured_shares(captured: Tensor, squares: Tensor, part: float) -> Tensor:
    """How much of their squared norm is held of matrices, float32 (n,): at most 1, where `squares` is an estimate.

    At least what c pairs of signs hold of a matrix whose c / min(d1, d2) of directions they stand for, evenly spread
    ones: (2 / pi)^2 of that. Where a code holds less (a matrix that is zero but for a few numbers), it tells next to
    nothing about inner products, and dividing by so little would make noise of the size of the matrix of it.

    Args:
        captured (`Tensor`): float64 (n,), the squared norms of what is held.
        squares (`Tensor`): float64 (n,), those of the matrices.
        part (`float`): c / min(d1, d2).
    """
    least = min(1.0, (2 / math.pi) ** 2 * part)
    # Of a matrix that is zero nothing is there to hold.
    shares = captured / squares.clamp_min(torch.finfo(squares.dtype).tiny)
    return shares.clamp(least, 1).float()


# What is left of matrices when pairs are taken out. It is never formed: products with it are products with the matrix,
# less those with the pairs. A vector is a row, (n, 1, d): a product with a single column takes ten times as long.


class _DenseRest:
    """Of dense matrices."""

    def __init__(self, matrices: Tensor, rank: int):
        self.matrices, self.transposed = matrices, matrices.mT
        self.squares = squared_norms(matrices)
        self.starts = _starts(rank, self.transposed)
        self.left = matrices.new_zeros(len(matrices), rank, matrices.shape[1])
        self.right = matrices.new_zeros(len(matrices), rank, matrices.shape[2])
        self.scales = matrices.new_zeros(len(matrices), 1, rank)
        self.targets = matrices.new_zeros(len(matrices), rank)

    def right_product(self, rows: Tensor) -> Tensor:
        """(n, 1, d2) -> (n, 1, d1)."""
        return rows @ self.transposed - (rows @ self.right.mT * self.scales) @ self.left

    def left_product(self, rows: Tensor) -> Tensor:
        """(n, 1, d1) -> (n, 1, d2)."""
        self._whole = rows @ self.matrices
        self._returned = self._whole - (rows @ self.left.mT * self.scales) @ self.right
        return self._returned

    def strongest(self, pair: int) -> Tensor:
        """The image (n, 1, d1) of about the strongest right direction."""
        right = self.starts[pair].expand(len(self.matrices), 1, -1)
        for _ in range(_ROUNDS):
            right = self.left_product(unit(self.right_product(right), dim=2))
        return self.right_product(right)

    def take(self, pair: int, left: Tensor, right: Tensor) -> None:
        """Take out as much of a pair as there is of it, the last left_product being that of its left vector.

        `targets` (n, c) gets the inner product of the two with the whole matrix.
        """
        # Not from the rest and what was taken: equal pairs must have the same target to the last bit.
        self.targets[:, pair] = (self._whole * right).sum(dim=(1, 2))
        inner = (self._returned * right).sum(dim=2)
        self.scales[:, :, pair] = inner / (_squares(left) * _squares(right))
        self.left[:, pair], self.right[:, pair] = left[:, 0], right[:, 0]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(n, d1, c) and (n, d2, c)."""
        return self.left.mT, self.right.mT


class _LowRankRest:
    """Of low-rank matrices over their sizes: the pairs are further rows, whose weights are minus their scales. Power
    iteration needs the rows' inner products alone, not the rows.

    Products are with all rows, also those that are still zero: their rounding must not depend on how many there are.
    """

    def __init__(self, matrices: LowRankMatrices, sizes: Tensor, rank: int):
        count, _, self.width = matrices.left.shape
        self.squares = matrices.squares / sizes.flatten().to(matrices.squares.dtype).square()
        roots = sizes.rsqrt()
        self.left, self.right = (_with_room(side.mT, roots, rank) for side in (matrices.left, matrices.right))
        self.grams = self.left @ self.left.mT, self.right @ self.right.mT
        self.weights = self.left.new_ones(count, 1, self.width + rank)
        self.targets = self.left.new_zeros(count, rank)
        self.starts = _starts(rank, matrices.right)
        self.images = self.starts.expand(count, -1, -1) @ self.right.mT

    def right_product(self, rows: Tensor) -> Tensor:
        return (rows @ self.right.mT * self.weights) @ self.left

    def left_product(self, rows: Tensor) -> Tensor:
        self._products = rows @ self.left.mT
        return (self._products * self.weights) @ self.right

    def strongest(self, pair: int) -> Tensor:
        round_ = (self.grams[0] * self.weights) @ (self.grams[1] * self.weights)
        for _ in range(_SQUARINGS):
            round_ = unit(round_, dim=(1, 2))
            round_ = round_ @ round_
        return (self.images[:, pair : pair + 1] * self.weights) @ round_ @ self.left

    def take(self, pair: int, left: Tensor, right: Tensor) -> None:
        row = self.width + pair
        products = self._products, right @ self.right.mT
        squares = _squares(left), _squares(right)
        inner = products[0] * products[1]
        self.targets[:, pair] = inner[:, 0, : self.width].sum(dim=1)
        self.weights[:, :, row] = -(inner * self.weights).sum(dim=2) / (squares[0] * squares[1])
        self.left[:, row], self.right[:, row] = left[:, 0], right[:, 0]
        for gram, along, square in zip(self.grams, products, squares, strict=True):
            along[:, :, row] = square
            gram[:, row, :] = gram[:, :, row] = along[:, 0]
        self.images[:, :, row] = right[:, 0] @ self.starts.T

    def pairs(self) -> tuple[Tensor, Tensor]:
        return self.left[:, self.width :].mT, self.right[:, self.width :].mT


def _with_room(rows: Tensor, factors: Tensor, more: int) -> Tensor:
    """Rows (n, l, d) times their example's factor (n, 1, 1), and `more` rows of zeros."""
    count, width, size = rows.shape
    wider = rows.new_empty(count, width + more, size)
    torch.mul(rows, factors, out=wider[:, :width])
    wider[:, width:] = 0
    return wider


def _starts(rank: int, like: Tensor) -> Tensor:
    """Where the search for each pair begins, (c, d2), for vectors that are the columns (d2) of `like`."""
    return fixed_normal(like.shape[1], rank, like).T


def _squares(rows: Tensor) -> Tensor:
    """Squared lengths of (n, 1, d): (n, 1)."""
    return torch.linalg.vecdot(rows, rows)


def fitted_scales(left: Tensor, right: Tensor, targets: Tensor) -> Tensor:
    """The scales a_j with which sum_j a_j left_j right_j^T comes nearest to each matrix M (least squares).

    Args:
        left (`Tensor`): (n, d1, c), levels.
        right (`Tensor`): (n, d2, c), levels.
        targets (`Tensor`): (n, c), left_j^T M right_j.

    Returns:
        `Tensor`: (n, c), float32.
    """
    wide = widest(left.device)
    gram = ((left.mT @ left) * (right.mT @ right)).to(wide)
    # Two pairs may have the same codes (a matrix of lower rank): a touch of ridge shares the scale between them. It is
    # above what rounding makes of their targets, which would come out as large scales of opposite signs.
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    gram.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
    # With the ridge it is positive definite: nothing to be checked, which a device would be waited for.
    return torch.linalg.solve_ex(gram, targets.to(wide).unsqueeze(2)).result.squeeze(2).float()
