"""The projection of a side as an explicit matrix."""

from torch import Tensor

from lorif_hf.algebra.projection import draw_signs


def rademacher(source_dim: int, target_dim: int, *, seed: int, name: str) -> Tensor:
    """Entries +-1/sqrt(target_dim), so that E[P P^T] is the identity; float32 (source_dim, target_dim)."""
    return draw_signs((source_dim, target_dim), seed=seed, name=name).float() / target_dim**0.5
