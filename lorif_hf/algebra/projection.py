"""Two-sided random projection of layer gradients."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def rademacher(source_dim: int, target_dim: int, *, seed: int, name: str) -> Tensor:
    """A Rademacher projection: entries +-1/sqrt(target_dim), so that E[P P^T] is the identity.

    Drawn on a CPU generator seeded by (seed, name), so that every machine draws the same matrix.

    Args:
        source_dim (`int`): rows.
        target_dim (`int`): columns.
        seed (`int`): the index's seed.
        name (`str`): what the matrix is for, e.g. the module's name and the side.

    Returns:
        `Tensor`: float32 of shape (source_dim, target_dim), on the CPU.

    Source: LoGRA's two-sided projection (arXiv:2405.13954, section 3) as used by LoRIF (arXiv:2601.21929, section 3).
    """
    bits = torch.randint(0, 2, (source_dim, target_dim), generator=_generator(seed, name), dtype=torch.int8)
    return bits.float().mul_(2).sub_(1).div_(target_dim**0.5)


@dataclass(frozen=True)
class TwoSidedProjection:
    """The signs of P_in (I x d1) and P_out (O x d2) of one layer, int8; `None` stands for the identity (f = 1)."""

    in_signs: Tensor | None
    out_signs: Tensor | None

    @classmethod
    def draw(
        cls, shape: tuple[int, int], projected_shape: tuple[int, int], *, seed: int, name: str
    ) -> "TwoSidedProjection":
        """The projection of layer `name` from (I, O) to (d1, d2); a side that keeps its size is not projected."""
        in_signs, out_signs = (
            None if source == target else rademacher(source, target, seed=seed, name=f"{name}/{side}").sign().char()
            for source, target, side in zip(shape, projected_shape, ("in", "out"), strict=True)
        )
        return cls(in_signs, out_signs)

    def sha256(self) -> str:
        """Hash of the signs, kept in the index: a machine that draws something else must not score with it."""
        digest = hashlib.sha256()
        for signs in (self.in_signs, self.out_signs):
            digest.update(b"identity" if signs is None else str(tuple(signs.shape)).encode())
            if signs is not None:
                digest.update((signs > 0).to(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> "TwoSidedProjection":
        """The same signs on a device, in a dtype (every dtype holds +-1 exactly)."""
        return TwoSidedProjection(
            *(None if signs is None else signs.to(device, dtype) for signs in (self.in_signs, self.out_signs))
        )


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
        """Drawn on a CPU generator seeded by (seed, name), like [`rademacher`]."""
        generator = _generator(seed, name)
        columns = torch.randint(0, target_dim, (source_dim,), generator=generator)
        return cls(
            columns, torch.randint(0, 2, (source_dim,), generator=generator, dtype=torch.int8) * 2 - 1, target_dim
        )

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


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def project(vectors: Tensor, signs: Tensor | None) -> Tensor:
    """Project vectors (..., I) with the signs (I, d) of a Rademacher matrix, or not at all where `signs` is `None`.

    The product with the bare signs is taken in the dtype of `vectors`, widened to float32 (float64 stays) and scaled.
    """
    wide = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    if signs is None:
        return vectors.to(wide)
    return (vectors @ signs).to(wide) / signs.shape[1] ** 0.5
