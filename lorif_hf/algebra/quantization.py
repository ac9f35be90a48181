"""Factors at 8, 4, 2 or 1 bits a number: packed codes, and one scale for each pair of vectors."""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from .rangefinder import LowRankMatrices, Matrices, matrix_sizes, unit


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
    """The codes of each vector, on a uniform grid of 2^bits levels around zero that is fitted to its own size.

    Args:
        vectors (`Tensor`): (n, d, c), each of the c columns a vector.
        bits (`int`): 8, 4, 2 or 1 (the sign alone).

    Returns:
        `Tensor`: uint8 (n, d, c), 0 to 2^bits - 1; [`levels`] says what they stand for.
    """
    if bits == 1:
        return (vectors >= 0).view(torch.uint8)
    half = 1 << (bits - 1)
    size = vectors.square().mean(dim=1, keepdim=True).sqrt()
    step = (size * _STEPS[bits]).clamp_min(torch.finfo(vectors.dtype).tiny)
    return ((vectors / step).floor().clamp(-half, half - 1) + half).to(torch.uint8)


def levels(codes: Tensor, bits: int) -> Tensor:
    """What codes stand for: the odd numbers from -(2^bits - 1) to 2^bits - 1, float32; the scale is kept apart."""
    return torch.add(codes.new_full((), 1 - (1 << bits), dtype=torch.float32), codes, alpha=2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n, d, c) to bytes (n, c, ceil(d bits / 8)); the first code stands in a byte's lowest bits."""
    per_byte = 8 // bits
    count, length, rank = codes.shape
    padded = torch.zeros(count, rank, packed_bytes(length, bits), per_byte, dtype=torch.uint8, device=codes.device)
    padded.flatten(2)[:, :, :length] = codes.transpose(1, 2)
    packed = padded[..., 0].clone()
    for position in range(1, per_byte):
        packed |= padded[..., position] << (bits * position)
    return packed


def unpack(packed: Tensor, length: int, bits: int, out: Tensor | None = None) -> Tensor:
    """The levels in bytes (n, c, ceil(d bits / 8)), as float32 (n, c, d), by table look-up.

    Args:
        packed (`Tensor`): uint8, in memory of the CPU.
        length (`int`): d.
        bits (`int`): 8, 4, 2 or 1.
        out (`Tensor`, *optional*): float32 (numbers of `packed`, 8 / bits), contiguous; the result is a view of it.
    """
    count, rank, size = packed.shape
    per_byte = 8 // bits
    values = torch.empty(packed.numel(), per_byte) if out is None else out
    # NumPy's look-up takes bytes for indices and is twice as fast as torch's; "clip" saves the check of each.
    np.take(_table(bits), packed.reshape(-1).numpy(), axis=0, out=values.numpy(), mode="clip")
    return values.view(count, rank, size * per_byte)[:, :, :length]


@functools.cache
def _table(bits: int) -> np.ndarray:
    """(256, 8 / bits): the levels of every byte."""
    shifts = torch.arange(0, 8, bits)
    codes = (torch.arange(256).unsqueeze(1) >> shifts) & ((1 << bits) - 1)
    return levels(codes, bits).numpy()


def quantized_factors(matrices: Matrices, rank: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factorise each matrix into pairs of quantised vectors, one pair after the other, each fitted to what is left.

    A few rounds of power iteration find the direction, two more alternate between the codes of either side. What one
    pair's rounding loses the next one sees: at one bit this comes nearer than quantising the singular vectors, and
    takes fewer products. The scales are fitted together at the end. The start is fixed, and each matrix is treated
    alone.

    Args:
        matrices (`Matrices`): (n, d1, d2).
        rank (`int`): c.
        bits (`int`): 8, 4, 2 or 1.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: codes of the left (n, d1, c) and right (n, d2, c) vectors, uint8; the scales
        (n, c), float32.

    Source: the semidiscrete decomposition (Kolda and O'Leary 1998), with a grid of 2^bits levels instead of -1, 0, 1.
    """
    matrices = matrices.float() if isinstance(matrices, Tensor) else matrices
    sizes = matrix_sizes(matrices)
    rest: _LowRankRest | _DenseRest
    if isinstance(matrices, LowRankMatrices):
        rest = _LowRankRest(matrices, sizes, rank)
    else:
        rest = _DenseRest(matrices / sizes, rank)
    codes: tuple[list[Tensor], list[Tensor]] = [], []

    def coded(vectors: Tensor) -> tuple[Tensor, Tensor]:
        found = quantize(vectors, bits)
        return found, levels(found, bits)

    for j in range(rank):
        _, left = coded(rest.strongest(j))
        _, right = coded(rest.left_product(left))
        left_codes, left = coded(rest.right_product(right))
        right_codes, right = coded(rest.left_product(left))
        rest.take(j, left, right)
        codes[0].append(left_codes)
        codes[1].append(right_codes)
    left_codes, right_codes = (torch.cat(side, dim=2) for side in codes)
    scales = fitted_scales(levels(left_codes, bits), levels(right_codes, bits), rest.targets)
    return left_codes, right_codes, scales * sizes.squeeze(2)


class _DenseRest:
    """What is left of dense matrices when pairs are taken out. It is never formed: products with it are products with
    the matrix, less those with the pairs, left_j and right_j."""

    def __init__(self, matrices: Tensor, rank: int):
        self.matrices, self.transposed = matrices, matrices.mT
        generator = torch.Generator(device="cpu").manual_seed(0)
        self.starts = torch.randn(matrices.shape[2], rank, generator=generator).to(matrices)
        self.left = matrices.new_zeros(len(matrices), matrices.shape[1], rank)
        self.right = matrices.new_zeros(len(matrices), matrices.shape[2], rank)
        self.targets = matrices.new_zeros(len(matrices), rank)

    def right_product(self, vectors: Tensor) -> Tensor:
        """(n, d2, 1) -> (n, d1, 1)."""
        return self.matrices @ vectors - self.left @ (self.right.mT @ vectors)

    def left_product(self, vectors: Tensor) -> Tensor:
        """(n, d1, 1) -> (n, d2, 1)."""
        self._whole = self.transposed @ vectors
        self._returned = self._whole - self.right @ (self.left.mT @ vectors)
        return self._returned

    def strongest(self, pair: int) -> Tensor:
        """The image (n, d1, 1) of about the strongest right direction."""
        right = self.starts[:, pair : pair + 1].expand(len(self.matrices), -1, -1)
        for _ in range(_ROUNDS):
            right = self.left_product(unit(self.right_product(right), dim=1))
        return self.right_product(right)

    def take(self, pair: int, left: Tensor, right: Tensor) -> None:
        """Take out as much of left @ right^T as there is of it, the last left_product being that of `left`.

        `targets` (n, c) gets the inner product of the two with the whole matrix.
        """
        # Not from the rest and what was taken: pairs of the same codes must have the same target to the last bit.
        self.targets[:, pair] = (self._whole * right).sum(dim=(1, 2))
        scale = (self._returned * right).sum(dim=1, keepdim=True) / (_squares(left) * _squares(right))
        self.left[:, :, pair : pair + 1], self.right[:, :, pair : pair + 1] = left * scale, right


class _LowRankRest:
    """The same of low-rank matrices over their sizes: the pairs are further columns, with the opposite sign. Power
    iteration needs the columns' inner products alone, not the columns."""

    def __init__(self, matrices: LowRankMatrices, sizes: Tensor, rank: int):
        self.width = matrices.left.shape[2]
        halves = sizes.rsqrt()
        # As rows, so that each is one run of memory; room for the pairs.
        self.left, self.right = (_with_room(side.mT, halves, rank) for side in (matrices.left, matrices.right))
        self.grams = self.left @ self.left.mT, self.right @ self.right.mT
        self.targets = self.left.new_zeros(len(self.left), rank)
        generator = torch.Generator(device="cpu").manual_seed(0)
        self.starts = torch.randn(rank, 1, matrices.shape[2], generator=generator).to(self.left)

    # A vector as a row: a product with a single column takes ten times as long.

    def right_product(self, vectors: Tensor) -> Tensor:
        return (vectors.mT @ self.right.mT @ self.left).mT

    def left_product(self, vectors: Tensor) -> Tensor:
        self._coordinates = vectors.mT @ self.left.mT
        return (self._coordinates @ self.right).mT

    def strongest(self, pair: int) -> Tensor:
        image = self.starts[pair].expand(len(self.left), -1, -1) @ self.right.mT  # in terms of the left columns
        round_ = self.grams[0] @ self.grams[1]
        for _ in range(_SQUARINGS):
            round_ = unit(round_, dim=(1, 2))
            round_ = round_ @ round_
        return (image @ round_ @ self.left).mT

    def take(self, pair: int, left: Tensor, right: Tensor) -> None:
        row = self.width + pair
        left_products, right_products = self._coordinates, right.mT @ self.right.mT
        inner = left_products * right_products
        self.targets[:, pair] = inner[:, 0, : self.width].sum(dim=1)
        left_square, right_square = _squares(left), _squares(right)
        scale = inner.sum(dim=2, keepdim=True) / (left_square * right_square)
        self.left[:, row : row + 1], self.right[:, row : row + 1] = (left * scale).mT, -right.mT
        left_products[:, :, row : row + 1], right_products[:, :, row : row + 1] = left_square * scale, -right_square
        for gram, along in zip(self.grams, (left_products * scale, -right_products), strict=True):
            gram[:, row : row + 1, :], gram[:, :, row : row + 1] = along, along.mT


def _with_room(rows: Tensor, factors: Tensor, more: int) -> Tensor:
    """Rows (n, l, d) times their example's factor (n, 1, 1), and `more` rows of zeros."""
    count, width, size = rows.shape
    wider = rows.new_empty(count, width + more, size)
    torch.mul(rows, factors, out=wider[:, :width])
    wider[:, width:] = 0
    return wider


def _squares(vectors: Tensor) -> Tensor:
    """Squared lengths of columns (n, d, 1), (n, 1, 1)."""
    return vectors.square().sum(dim=1, keepdim=True)


def fitted_scales(left: Tensor, right: Tensor, targets: Tensor) -> Tensor:
    """The scales a_j with which sum_j a_j left_j right_j^T comes nearest to each matrix M (least squares).

    Args:
        left (`Tensor`): (n, d1, c), levels.
        right (`Tensor`): (n, d2, c), levels.
        targets (`Tensor`): (n, c), left_j^T M right_j.

    Returns:
        `Tensor`: (n, c), float32.
    """
    gram = ((left.mT @ left) * (right.mT @ right)).double()
    # Two pairs may have the same codes (a matrix of lower rank): a touch of ridge shares the scale between them. It is
    # above what rounding makes of their targets, which would come out as large scales of opposite signs.
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    gram.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
    return torch.linalg.solve(gram, targets.double().unsqueeze(2)).squeeze(2).float()
