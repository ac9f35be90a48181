"""Random projections of layer gradients, the same on every machine and with every release of every library.

What is drawn comes from SHAKE-128 (FIPS 202), an endless stream of bytes that the standard defines for every message.
The message is "lorif-hf projection 1", the seed as a decimal number and the name of what is drawn, each but the first
after a zero byte.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, name: str, length: int) -> np.ndarray:
    """The first `length` bytes of the stream of a seed and a name, uint8."""
    message = b"\0".join((b"lorif-hf projection 1", str(seed).encode(), name.encode(errors="surrogatepass")))
    return np.frombuffer(hashlib.shake_128(message).digest(length), dtype=np.uint8)


def draw_signs(shape: tuple[int, ...], *, seed: int, name: str) -> Tensor:
    """Random signs, int8 +1 or -1 in row order: the bits of the stream, the highest of each byte first; 1 is +1."""
    size = int(np.prod(shape))
    bits = np.unpackbits(stream(seed, name, -(-size // 8)), count=size).reshape(shape)
    return torch.from_numpy(bits.view(np.int8)).mul_(2).sub_(1)


@dataclass(frozen=True)
class BlockSigns:
    """A random projection of E blocks of w coordinates each onto the same d columns: of the outputs of E experts, or
    of a side, one block, that is wider than an index keeps.

    Each coordinate goes to one column, with a sign. The w of a block are spread evenly, so that at d = w inner
    products within a block stay as they are; those between blocks keep their expected value, zero. Inner products
    vary as much as under a Rademacher matrix, which has E w d numbers where this has E w.

    Args:
        columns (`Tensor`): int64 (E, w).
        signs (`Tensor`): +1 or -1, (E, w).
        width (`int`): d.

    Source: sparse embeddings with one entry in each row, Charikar et al. 2002; Clarkson and Woodruff 2013
    (arXiv:1207.6365).
    """

    columns: Tensor
    signs: Tensor
    width: int

    @classmethod
    def draw(cls, blocks: int, block_width: int, width: int, *, seed: int, name: str) -> "BlockSigns":
        """Signs are those of `name`, as in [`draw_signs`]. A block's coordinates are ordered by the little-endian
        32-bit words that it has in the stream of "<name>/order" (ties as they come): the k-th goes to column k mod
        `width`."""
        words = stream(seed, f"{name}/order", 4 * blocks * block_width).view("<u4").reshape(blocks, block_width)
        places = np.argsort(np.argsort(words, axis=1, kind="stable"), axis=1, kind="stable") % width
        columns = torch.from_numpy(places.astype(np.int64))
        return cls(columns, draw_signs((blocks, block_width), seed=seed, name=name), width)

    @property
    def shape(self) -> tuple[int, int]:
        """(E w, d)."""
        return self.signs.numel(), self.width

    def to(self, device: torch.device, dtype: torch.dtype) -> "BlockSigns":
        """The same on a device, with signs of a dtype."""
        return BlockSigns(self.columns.to(device), self.signs.to(device, dtype), self.width)

    def project(self, vectors: Tensor) -> Tensor:
        """(..., E w) -> (..., d)."""
        signed = vectors * self.signs.flatten()
        return vectors.new_zeros(*vectors.shape[:-1], self.width).index_add_(-1, self.columns.flatten(), signed)

    def of_block(self, block: int) -> "BlockSigns":
        """What is done with one block: (..., w) -> (..., d)."""
        return BlockSigns(self.columns[block : block + 1], self.signs[block : block + 1], self.width)


@dataclass(frozen=True)
class TwoSidedProjection:
    """The signs of P_in (I x d1) and P_out (O x d2) of one layer, int8; `None` stands for the identity (f = 1).

    A sign over the root of the projected size is an entry of a Rademacher projection: E[P P^T] is the identity. A side
    that is cut to `max_projection_dim` is folded instead, and the outputs of a layer of experts are, expert by expert
    ([`BlockSigns`]).

    Source: LoGRA's two-sided projection (arXiv:2405.13954, section 3) as used by LoRIF (arXiv:2601.21929, section 3).
    """

    in_signs: Tensor | BlockSigns | None
    out_signs: Tensor | BlockSigns | None

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int],
        projected_shape: tuple[int, int],
        *,
        seed: int,
        name: str,
        in_name: str | None = None,
        blocks: int = 1,
        folded: tuple[bool, bool] = (False, False),
    ) -> "TwoSidedProjection":
        """The projection of layer `name` from (I, O) to (d1, d2); a side that keeps its size is not projected.

        Args:
            in_name (`str`, *optional*): the layer whose projection the side of the inputs has, which are the same;
                by default `name`.
            blocks (`int`, *optional*, defaults to 1): how many blocks the outputs come in.
            folded (`tuple[bool, bool]`, *optional*): which sides are folded, not multiplied with a matrix of signs.
        """

        def side(source: int, target: int, name: str, fold: bool, blocks: int = 1) -> Tensor | BlockSigns | None:
            if blocks > 1 or (fold and source != target):
                return BlockSigns.draw(blocks, source // blocks, target, seed=seed, name=name)
            return None if source == target else draw_signs((source, target), seed=seed, name=name)

        (size_in, size_out), (d1, d2) = shape, projected_shape
        return cls(
            side(size_in, d1, f"{in_name or name}/in", folded[0]),
            side(size_out, d2, f"{name}/out", folded[1], blocks),
        )

    def projected_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(d1, d2) of a layer of shape (I, O)."""
        sides = zip(shape, (self.in_signs, self.out_signs), strict=True)
        d1, d2 = (size if signs is None else signs.shape[1] for size, signs in sides)
        return d1, d2

    def sha256(self) -> str:
        """Hash of the signs, kept in the index: whoever draws something else must not score with it."""
        digest = hashlib.sha256()
        for signs in (self.in_signs, self.out_signs):
            digest.update(b"identity" if signs is None else str(tuple(signs.shape)).encode())
            if isinstance(signs, BlockSigns):
                digest.update(signs.columns.numpy().tobytes())
            if signs is not None:
                values = signs.signs if isinstance(signs, BlockSigns) else signs
                digest.update((values > 0).to(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> "TwoSidedProjection":
        """The same signs on a device, in a dtype (every dtype holds +-1 exactly)."""
        in_signs = None if self.in_signs is None else self.in_signs.to(device, dtype)
        return TwoSidedProjection(in_signs, None if self.out_signs is None else self.out_signs.to(device, dtype))


@dataclass(frozen=True)
class SparseProjection:
    """A random projection with one entry of +-1 in each row: which column, and its sign, for each coordinate.

    E[<P^T x, P^T y>] = <x, y>, with the variance of a dense Rademacher projection and none of its size.

    Args:
        columns (`Tensor`): int64 (source_dim,).
        signs (`Tensor`): int8 (source_dim,).
        target_dim (`int`): columns of P.

    Source: count sketch, Charikar et al. 2002; feature hashing, Weinberger et al. 2009 (arXiv:0902.2206).
    """

    columns: Tensor
    signs: Tensor
    target_dim: int

    @classmethod
    def draw(cls, source_dim: int, target_dim: int, *, seed: int, name: str) -> "SparseProjection":
        """Drawn from the stream of `name`: a little-endian 32-bit word w for each coordinate, whose column is
        floor(w `target_dim` / 2^32); the signs from that of "<name>/signs", as in [`draw_signs`]."""
        words = stream(seed, name, 4 * source_dim).view("<u4").astype(np.uint64)
        columns = torch.from_numpy((words * np.uint64(target_dim) >> np.uint64(32)).astype(np.int64))
        return cls(columns, draw_signs((source_dim,), seed=seed, name=f"{name}/signs"), target_dim)

    def to(self, device: torch.device) -> "SparseProjection":
        """The same on a device."""
        return SparseProjection(self.columns.to(device), self.signs.to(device), self.target_dim)

    def project(self, vectors: Tensor) -> Tensor:
        """(n, source_dim) -> (n, target_dim)."""
        columns, signs = self.columns.to(vectors.device), self.signs.to(vectors)
        return vectors.new_zeros(len(vectors), self.target_dim).index_add_(1, columns, vectors * signs)

    def sha256(self) -> str:
        """Hash of what was drawn."""
        digest = hashlib.sha256(str(self.target_dim).encode())
        for drawn in (self.columns, self.signs):
            digest.update(drawn.numpy().tobytes())
        return digest.hexdigest()


def project(vectors: Tensor, signs: Tensor | BlockSigns | None) -> Tensor:
    """Project vectors (..., I) with the signs (I, d) of a Rademacher matrix or of blocks, or not at all where `signs`
    is `None`.

    The product with the bare signs is taken in the dtype of `vectors`, widened to float32 (float64 stays) and scaled.
    (What blocks add up is few numbers, which are widened before.)
    """
    wide = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    if signs is None:
        return vectors.to(wide)
    if isinstance(signs, BlockSigns):
        return signs.project(vectors.to(wide))
    return (vectors @ signs).to(wide) / signs.shape[1] ** 0.5
