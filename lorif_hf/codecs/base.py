"""What every codec does, and how they are registered.

A codec turns a batch of gradient matrices (n, d1, d2) into named tensors with the examples along their first axis
("parts"), and scores parts against preconditioned queries.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..algebra.matrices import Matrices
from ..algebra.scoring import ROWS, QueryGroup, Workspace, add_scores, rows_per_block
from ..algebra.sign_scoring import SignPairs, add_sign_scores, looking_up_pays
from ..config import InfluenceConfig
from ..registry import CODECS


Parts = Mapping[str, Tensor]
"""The stored tensors of one layer and its examples, by name."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Of each part: its dtype and the shape of one example's share."""


class Codec(ABC):
    """One way to store gradients. A kind implements every abstract method and overrides no other.

    Attributes:
        name (`str`): what `InfluenceConfig.codec` and an index's config call it.
        pairs (`int` or `None`): c, pairs of vectors stored of a gradient; `None`: it is stored whole.
        products (`int`): products of a gradient with a vector that encoding it takes, for estimates of time.

    Example: (`docs/extending.md` writes all of one)

    ```python
    >>> @lorif_hf.codecs.register
    ... class Mine(Codec):
    ...     name = "int8"
    ```
    """

    name: ClassVar[str]
    pairs: int | None
    products: int

    @classmethod
    @abstractmethod
    def from_config(cls, config: InfluenceConfig) -> "Codec":
        """The codec as a config sets it.

        Raises:
            [`~lorif_hf.errors.ConfigError`]: the config holds values that do not go with this codec.
        """

    @abstractmethod
    def layout(self, d1: int, d2: int) -> Layout:
        """The parts of a layer whose projected gradients are d1 x d2."""

    @abstractmethod
    def encode(self, matrices: Matrices) -> dict[str, Tensor]:
        """Gradients (n, d1, d2), float32, to parts on the device where they are. Each example is encoded alone."""

    @abstractmethod
    def factors(self, parts: Parts, d1: int, d2: int) -> tuple[Tensor, Tensor | None]:
        """left (n, d1, c) and right (n, d2, c), whose product is what was stored; (matrices, `None`) where dense."""

    @abstractmethod
    def unpacked(
        self, parts: Parts, rows: slice, d1: int, d2: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The numbers of a run of rows in float32: left (n, c, d1), right (n, c, d2) and the pairs' scales (n, c), if
        any.

        Of gradients stored whole: (n, d1, d2) and twice `None`. [`widened`] does this for a part in any dtype. Rows of
        any numbers fill n up to a multiple of `ROWS` (`DENSE_ROWS`), so that equal examples get equal scores wherever
        they stand. Valid until the workspace is used again.
        """

    def signs(self, parts: Parts, rows: slice) -> SignPairs | None:
        """A run of rows as they are stored, where they are pairs of signs at a bit a number; `None`: they are not."""
        return None

    def add_scores(
        self,
        scores: Tensor,
        groups: Sequence[QueryGroup],
        parts: Parts,
        d1: int,
        d2: int,
        workspace: Workspace,
        first: int = 0,
        examples: int = 0,
    ) -> None:
        """Add one layer's inner products to the scores (Q, n), float32, block by block.

        Args:
            first (`int`, *optional*, defaults to 0): the row of the parts that the first score is of.
            examples (`int`, *optional*, defaults to 0): all that are scored with these queries, here and elsewhere:
                tables of the queries are made where there are many.
        """
        count, step = scores.shape[1], rows_per_block(self.pairs, d1, d2)
        stored = self.signs(parts, slice(first, first + count))
        for group in groups:
            if stored is not None and looking_up_pays(group, stored.scales.shape[1], examples):
                add_sign_scores(scores, group, stored, workspace)
                groups = [other for other in groups if other is not group]
        if not groups:
            return
        for start in range(0, count, step):
            stop = min(start + step, count)
            left, right, scales = self.unpacked(parts, slice(first + start, first + stop), d1, d2, workspace)
            for group in groups:
                add_scores(scores if step >= count else scores[:, start:stop], group, left, right, scales, workspace)

    def bytes_per_example(self, d1: int, d2: int) -> int:
        """Bytes of one example in one layer."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.layout(d1, d2).values())


def codec_of(config: InfluenceConfig) -> Codec:
    """How an index of this config stores gradients."""
    codec: Codec = CODECS.get(config.codec_name).from_config(config)
    return codec


def filled_up(count: int, rows: int = ROWS) -> int:
    """The next multiple of `rows`: so many rows a buffer holds for `count`."""
    return -(-count // rows) * rows


def widened(part: Tensor, name: str, workspace: Workspace, rows: int = ROWS) -> Tensor:
    """A part in float32, in the workspace's buffer of that name, filled up to a multiple of `rows` rows."""
    count = part.shape[0]
    wide = workspace.take(name, filled_up(count, rows), *part.shape[1:])
    wide[:count].copy_(part)
    return wide
