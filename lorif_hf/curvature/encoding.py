"""From a batch's projected gradients to what an index stores, and the same steps for a query.

What is stored and how a query is preconditioned are two things: everything here happens to both sides alike, before
the training side is truncated and the query meets the curvature.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..algebra.matrices import LowRankMatrices, Matrices
from ..algebra.projection import SparseProjection, TwoSidedProjection
from ..algebra.rangefinder import RangeFinder
from ..config import InfluenceConfig
from ..errors import ConfigError, IndexCorruptedError, ModelMismatchError
from ..layers.modules import TrackedModule
from ..storage.layout import MANIFEST, ModuleEntry


GLOBAL = "all-layers"
"""Name of the one stored gradient where `projection_dim` projects all layers together."""

Whiteners = Mapping[str, tuple[Tensor, Tensor]]
"""By module: in_whitener (d1, d1) and out_whitener (d2, d2)."""


def reduced_width(config: InfluenceConfig, d1: int, d2: int) -> int | None:
    """Directions to which a layer's whitened gradient is reduced before it is fitted; `None` where it is formed whole.

    12 and more: pairs of coarse vectors are fitted to what the pairs before them left, so they need more than c.
    """
    if config.whitening == "none" or config.factor_rank is None or config.normalize:
        return None
    width = max(12, 2 * config.factor_rank + 6)
    return width if 2 * width <= min(d1, d2) else None


def stored_entries(config: InfluenceConfig, modules: Sequence[ModuleEntry]) -> list[ModuleEntry]:
    """What the factor files hold: the modules, or the one gradient that stands for all of them."""
    if config.projection_dim is None:
        return list(modules)
    numbers = sum(module.in_features * module.out_features for module in modules)
    return [ModuleEntry(GLOBAL, "global", numbers, 1, config.projection_dim, 1, "")]


def bytes_per_example(config: InfluenceConfig, modules: Sequence[ModuleEntry]) -> int:
    """Bytes that one example takes in the factor files: tensors alone, without the files' headers."""
    codec = config.codec()
    weight = 4 if config.output == "margin" else 0
    return weight + sum(codec.bytes_per_example(entry.d1, entry.d2) for entry in stored_entries(config, modules))


class Encoder:
    """Projects, normalises and whitens gradients as the config says.

    Args:
        config (`InfluenceConfig`): every choice that shapes the index.
        modules (`Sequence[ModuleEntry]`): the tracked layers.
        whiteners (`Whiteners`, *optional*): where the config whitens.
    """

    def __init__(self, config: InfluenceConfig, modules: Sequence[ModuleEntry], whiteners: Whiteners | None = None):
        self.config = config
        self.whiteners = whiteners
        self._sketches: dict[str, SparseProjection] = {}
        if config.projection_dim is not None:
            for module in modules:
                numbers = module.in_features * module.out_features
                self._sketches[module.name] = draw_global(module.name, numbers, config)

    def reductions(self) -> dict[str, RangeFinder]:
        """For layers of whose whitened gradients only a few directions are stored: what finds them from the tokens.

        The other layers' gradients are formed. A query's always are: nothing of it is cut.
        """
        found = {}
        for name, sides in (self.whiteners or {}).items():
            width = reduced_width(self.config, len(sides[0]), len(sides[1]))
            if width is not None:
                found[name] = RangeFinder(*sides, width)
        return found

    def encode(self, gradients: Mapping[str, Matrices]) -> dict[str, Matrices]:
        """Projected gradients (B, d1, d2) of the tracked layers to those of the stored entries, float32.

        Those that a reduction made are whitened already.
        """
        reduced = {name: one for name, one in gradients.items() if isinstance(one, LowRankMatrices)}
        encoded = {name: one.float() for name, one in gradients.items() if isinstance(one, Tensor)}
        if self._sketches:
            encoded = {GLOBAL: self._global(encoded)}
        if self.config.normalize:
            squares = torch.stack([one.flatten(1).square().sum(dim=1) for one in encoded.values()]).sum(dim=0)
            inverse = torch.where(squares > 0, squares.rsqrt(), 0).view(-1, 1, 1)
            encoded = {name: one * inverse for name, one in encoded.items()}
        if self.whiteners is not None:
            encoded = {name: self._whiten(name, one) for name, one in encoded.items()}
        return {**encoded, **reduced}

    def _global(self, gradients: Mapping[str, Tensor]) -> Tensor:
        parts = [self._sketches[name].project(gradient.flatten(1)) for name, gradient in gradients.items()]
        return torch.stack(parts).sum(dim=0).unsqueeze(2)

    def _whiten(self, name: str, gradient: Tensor) -> Tensor:
        assert self.whiteners is not None
        in_whitener, out_whitener = (whitener.to(gradient.device) for whitener in self.whiteners[name])
        return in_whitener @ gradient @ out_whitener


def draw_global(name: str, numbers: int, config: InfluenceConfig) -> SparseProjection:
    """The part of the global projection that takes in layer `name`."""
    assert config.projection_dim is not None
    return SparseProjection.draw(numbers, config.projection_dim, seed=config.seed, name=f"{name}/global")


def module_entry(tracked: TrackedModule, config: InfluenceConfig) -> ModuleEntry:
    """A tracked layer at the size to which the config projects it; nothing is drawn yet.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: `factor_rank` is above what the layer has.
    """
    d1, d2 = config.projected_shape(tracked.in_features, tracked.out_features)
    if config.factor_rank is not None and config.factor_rank > min(d1, d2):
        raise ConfigError(
            f"factor_rank={config.factor_rank} is above the limit of module '{tracked.name}': its projected "
            f"gradient is {d1} x {d2}, so the rank is at most {min(d1, d2)}. Lower factor_rank or "
            "projection_factor, or leave the module out."
        )
    return ModuleEntry(tracked.name, tracked.kind, tracked.in_features, tracked.out_features, d1, d2, "")


def draw_projection(entry: ModuleEntry, config: InfluenceConfig) -> tuple[TwoSidedProjection, str]:
    """A layer's two-sided projection, and the hash of all that is drawn for it."""
    shapes = (entry.in_features, entry.out_features), (entry.d1, entry.d2)
    drawn = TwoSidedProjection.draw(*shapes, seed=config.seed, name=entry.name)
    if config.projection_dim is not None:
        return drawn, draw_global(entry.name, entry.in_features * entry.out_features, config).sha256()
    return drawn, drawn.sha256()


def checked_projection(entry: ModuleEntry, config: InfluenceConfig) -> TwoSidedProjection:
    """The projection of an indexed layer, drawn again.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: config and layer do not go together.
        [`~lorif_hf.errors.ModelMismatchError`]: this machine draws another one than the index was made with.
    """
    shape = config.projected_shape(entry.in_features, entry.out_features)
    if (entry.d1, entry.d2) != shape or (config.factor_rank or 1) > min(shape):
        raise IndexCorruptedError(
            MANIFEST,
            f"module '{entry.name}' is {entry.d1} x {entry.d2}; its config makes it {shape[0]} x {shape[1]}, at rank "
            f"{config.factor_rank}",
        )
    drawn, sha256 = draw_projection(entry, config)
    if sha256 != entry.projection_sha256:
        raise ModelMismatchError(
            f"This machine draws another projection for module '{entry.name}' than the one the index was made with "
            f"(torch {torch.__version__}): its random numbers differ. Use the torch release that built the index."
        )
    return drawn
