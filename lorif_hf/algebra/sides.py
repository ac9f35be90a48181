"""The two sides of a token: its input, and the gradient with regard to its output. Most are vectors; those that are
mostly zeros are kept, and projected, as what they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .projection import BlockSigns, project


@dataclass(frozen=True)
class OneHot:
    """Tokens that are rows of an identity matrix, as an embedding sees them.

    Args:
        ids (`Tensor`): int64 (B, T); a negative one is a row of zeros.
        size (`int`): of the identity.
        dtype (`torch.dtype`): of the numbers that they stand for.
        values (`Tensor`, *optional*): (B, T), what stands where the one would.
    """

    ids: Tensor
    size: int
    dtype: torch.dtype
    values: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.ids.shape[0], self.ids.shape[1], self.size

    def entries(self, dtype: torch.dtype) -> Tensor:
        """(B, T): what is not zero of each row; zero where there is nothing."""
        known = (self.ids >= 0).to(dtype)
        return known if self.values is None else known * self.values.to(dtype)


@dataclass(frozen=True)
class Blocks:
    """Vectors that are zero but for one of several blocks of equal width: what comes back to one of many experts.

    Args:
        values (`Tensor`): (B, T, w), what stands in the block.
        blocks (`Tensor`): int64 (B, T), in which.
        count (`int`): how many blocks there are.
    """

    values: Tensor
    blocks: Tensor
    count: int

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.values.shape[0], self.values.shape[1], self.values.shape[2] * self.count


Side = Tensor | OneHot | Blocks
"""Of a batch's tokens, (B, T, features): as a tensor, or as what it is made of."""


def project_side(side: Side, signs: Tensor | BlockSigns | None) -> Tensor:
    """[`~lorif_hf.algebra.projection.project`] of whatever stands for vectors (B, T, features); of none more is made
    than what comes out, (B, T, d)."""
    if isinstance(side, Tensor):
        return project(side, signs)
    if signs is None:
        return project(as_vectors(side), None)
    wide = torch.float64 if side.dtype == torch.float64 else torch.float32
    if isinstance(side, OneHot):
        ids, entries = side.ids.clamp_min(0), side.entries(wide)
        if isinstance(signs, BlockSigns):
            places, values = signs.columns.flatten()[ids], entries * signs.signs.flatten()[ids].to(wide)
            folded = torch.zeros(*ids.shape, signs.width, dtype=wide, device=ids.device)
            return folded.scatter_(2, places.unsqueeze(2), values.unsqueeze(2))
        return signs[ids].to(wide) * entries.unsqueeze(-1) / signs.shape[1] ** 0.5
    width, blocks = side.values.shape[2], side.blocks.flatten()
    order = blocks.argsort(stable=True)
    counts = torch.bincount(blocks, minlength=side.count).tolist()  # all that a device is waited for
    projected = []
    for block, values in enumerate(side.values.flatten(0, 1)[order].split(counts)):
        if isinstance(signs, BlockSigns):
            part: Tensor | BlockSigns = signs.of_block(block)
        else:
            part = signs[block * width : (block + 1) * width]
        projected.append(project(values, part))
    return torch.cat(projected)[order.argsort()].unflatten(0, side.blocks.shape)


def as_vectors(side: Side) -> Tensor:
    """What a side stands for, (B, T, features)."""
    if isinstance(side, Tensor):
        return side
    if isinstance(side, OneHot):
        vectors = torch.zeros(*side.shape, dtype=side.dtype, device=side.device)
        return vectors.scatter_(2, side.ids.clamp_min(0).unsqueeze(2), side.entries(side.dtype).unsqueeze(2))
    batch, tokens, width = side.values.shape
    vectors = side.values.new_zeros(batch, tokens, side.count, width)
    places = side.blocks.view(batch, tokens, 1, 1).expand(-1, -1, 1, width)
    return vectors.scatter_(2, places, side.values.unsqueeze(2)).flatten(2)


def cast_side(side: Side, dtype: torch.dtype) -> Side:
    """The same in another dtype."""
    if isinstance(side, Tensor):
        return side.to(dtype)
    if isinstance(side, OneHot):
        return OneHot(side.ids, side.size, dtype, side.values)
    return Blocks(side.values.to(dtype), side.blocks, side.count)


def side_on(side: Side, device: torch.device) -> Side:
    """The same on a device."""
    if side.device == device:
        return side
    if isinstance(side, OneHot):
        values = None if side.values is None else side.values.to(device)
        return OneHot(side.ids.to(device), side.size, side.dtype, values)
    if isinstance(side, Blocks):
        return Blocks(side.values.to(device), side.blocks.to(device), side.count)
    return side.to(device)


def scale_side(side: Side, scale: Tensor) -> Side:
    """Each feature times its number of `scale`, float32 (features,); 16-bit sides come out as float32."""
    dtype = torch.promote_types(side.dtype, scale.dtype)
    if isinstance(side, Tensor):
        return side * scale
    if isinstance(side, OneHot):
        return OneHot(side.ids, side.size, dtype, side.entries(dtype) * scale[side.ids.clamp_min(0)])
    return Blocks(side.values * scale.view(side.count, -1)[side.blocks], side.blocks, side.count)


def cat_tokens(sides: Sequence[Side]) -> Side:
    """The tokens of several calls of one layer, side by side: (B, T1 + T2 + ..., features)."""
    first = sides[0]
    if len(sides) == 1:
        return first
    if all(isinstance(side, OneHot) and side.values is None for side in sides):
        return OneHot(torch.cat([side.ids for side in sides], dim=1), first.shape[2], first.dtype)  # type: ignore[union-attr]
    if all(isinstance(side, Blocks) for side in sides):
        values, blocks = ([getattr(side, name) for side in sides] for name in ("values", "blocks"))
        return Blocks(torch.cat(values, dim=1), torch.cat(blocks, dim=1), first.count)  # type: ignore[union-attr]
    return torch.cat([as_vectors(side) for side in sides], dim=1)
