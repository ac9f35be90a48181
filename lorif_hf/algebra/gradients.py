"""The gradients of one layer as they are stored, read block by block, and expanded no further than a block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


FactorBlocks = Callable[[int], Iterator[tuple[Tensor, Tensor | None]]]
"""Called once per pass with the number of rows that suits the caller, gives blocks of rows in order, none of more than
that if it can: (n, d1, c) and (n, d2, c), or dense (n, d1, d2) and `None`."""

BLOCK_NUMBERS = 1 << 22  # numbers of a block of expanded gradients: 16 MiB of float32


@dataclass(frozen=True)
class StoredGradients:
    """The N stored gradients G~_i (d1, d2) of one layer.

    Args:
        blocks (`FactorBlocks`): gives the factors anew for each pass.
        count (`int`): N, rows in all blocks together.
        d1, d2 (`int`): shape of each gradient.
        factor_rank (`int` or `None`): c; `None` where they are stored dense.
    """

    blocks: FactorBlocks
    count: int
    d1: int
    d2: int
    factor_rank: int | None

    @property
    def dim(self) -> int:
        """D = d1 d2."""
        return self.d1 * self.d2

    @property
    def size(self) -> int:
        """Numbers that stand for one gradient: c (d1 + d2), or D."""
        return self.dim if self.factor_rank is None else self.factor_rank * (self.d1 + self.d2)

    def factors(self, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One pass: float32 factors of at most `rows` examples at a time."""
        for left, right in self.blocks(rows):
            for start in range(0, len(left), rows):
                block = slice(start, start + rows)
                yield left[block].float(), None if right is None else right[block].float()

    def matrices(self, block_size: int = BLOCK_NUMBERS) -> Iterator[Tensor]:
        """One pass: float32 (n, D) blocks of at most `block_size` numbers (or one row)."""
        for left, right in self.factors(max(1, block_size // self.dim)):
            yield expand(left, right)


def expand(left: Tensor, right: Tensor | None, rows: slice = slice(None)) -> Tensor:
    """Some rows (of d1) of each gradient, flattened: (n, d1, c), (n, d2, c) -> (n, k d2); dense likewise."""
    left = left[:, rows]
    if right is None:
        return left.flatten(1)
    # At rank one the batched product is several times slower than the broadcast one.
    return (left * right.mT if left.shape[2] == 1 else left @ right.mT).flatten(1)


def factor_squared_norms(left: Tensor, right: Tensor | None) -> Tensor:
    """|G~_i|^2 from the factors alone: (n, d1, c), (n, d2, c) -> float64 (n,)."""
    if right is None:
        return left.double().square().sum(dim=(1, 2))
    left, right = left.double(), right.double()
    return ((left.mT @ left) * (right.mT @ right)).sum(dim=(1, 2)).clamp_min(0)
