"""From a batch's projected gradients to what an index stores, and the same steps for a query.

What is stored and how a query is preconditioned are two things: everything here happens to both sides alike, before
the training side is truncated and the query meets the curvature.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..algebra.matrices import LowRankMatrices, Matrices, Reduction, dense
from ..algebra.projection import SparseProjection, TwoSidedProjection
from ..algebra.token_factors import TokenFactors
from ..codecs import Codec, codec_of
from ..config import InfluenceConfig
from ..errors import ConfigError, IndexCorruptedError, ModelMismatchError
from ..layers.modules import TrackedModule
from ..storage.layout import MANIFEST, ModuleEntry
from .base import Tensors, curvature_of


GLOBAL = "all-layers"
"""Name of the one stored gradient where `projection_dim` projects all layers together."""

_MOST_PAIRS = 64  # that are stored of a layer of a smaller rank: an index from anybody may not ask for any number


def reduced_width(codec: Codec, config: InfluenceConfig, d1: int, d2: int) -> int | None:
    """Directions to which a layer's whitened gradient may be reduced before it is cut; `None`: it is formed whole.

    12 and more: pairs of coarse vectors are fitted to what the pairs before them left, so they need more than c.
    """
    if codec.pairs is None or config.normalize:
        return None
    width = max(12, 2 * codec.pairs + 6)
    return width if 2 * width <= min(d1, d2) else None


def stored_entries(config: InfluenceConfig, modules: Sequence[ModuleEntry]) -> list[ModuleEntry]:
    """What the factor files hold: the modules, or the one gradient that stands for all of them."""
    if config.projection_dim is None:
        return list(modules)
    size = sum(module.d1 * module.d2 for module in modules)
    return [ModuleEntry(GLOBAL, "global", size, 1, config.projection_dim, 1, "")]


def bytes_per_example(config: InfluenceConfig, modules: Sequence[ModuleEntry]) -> int:
    """Bytes that an example takes in the factor files: tensors alone, without the files' headers."""
    codec = codec_of(config)
    weight = torch.float32.itemsize if config.weighted else 0
    return weight + sum(codec.bytes_per_example(entry.d1, entry.d2) for entry in stored_entries(config, modules))


class Encoder:
    """Projects, normalises and whitens gradients as the config says.

    Args:
        config (`InfluenceConfig`): every choice that shapes the index.
        modules (`Sequence[ModuleEntry]`): the tracked layers.
        first (`Mapping[str, Tensors]`): by module, what the curvature's first pass made; empty where it has none.
    """

    def __init__(self, config: InfluenceConfig, modules: Sequence[ModuleEntry], first: Mapping[str, Tensors]):
        self.config = config
        self._codec = codec_of(config)
        self._first_pass, self._first = curvature_of(config).first_pass, first
        self._placed: dict[str, Tensors] = {}
        self._sketches: dict[str, SparseProjection] = {}
        if config.projection_dim is not None:
            for module in modules:
                self._sketches[module.name] = draw_global(module.name, module.d1 * module.d2, config)
        self._shapes = {module.name: (module.d1, module.d2) for module in modules}

    def reductions(self) -> dict[str, Reduction]:
        """For layers of whose whitened gradients only a few directions are stored: what finds them from the tokens.

        The other layers' gradients are formed.
        """
        reductions = {}
        for name, tensors in self._first.items():
            width = reduced_width(self._codec, self.config, *self._shapes[name])
            if self._first_pass is not None and width is not None:
                reductions[name] = self._first_pass.reduction(tensors, width)
        return {name: reduction for name, reduction in reductions.items() if reduction is not None}

    def query_reductions(self) -> dict[str, Reduction]:
        """By layer, what makes a query's whitened gradients of its tokens: nothing of them is cut.

        None where gradients are divided by their norm or projected all together: they are formed, and encoded then.
        """
        if self.config.normalize or self._sketches:
            return {}
        first_pass = self._first_pass
        if first_pass is None:
            return {name: TokenFactors(None, None) for name in self._shapes}
        reductions = {name: first_pass.reduction(tensors, None) for name, tensors in self._first.items()}
        return {name: reduction for name, reduction in reductions.items() if reduction is not None}

    def in_scales(self) -> dict[str, Tensor]:
        """By layer, what its inputs are multiplied with before they are projected, where there is anything."""
        first_pass = self._first_pass
        scales = {name: first_pass.in_scale(tensors) for name, tensors in self._first.items()} if first_pass else {}
        return {name: scale for name, scale in scales.items() if scale is not None}

    def encode(self, gradients: Mapping[str, Matrices], whitened: Container[str] = ()) -> dict[str, Matrices]:
        """Projected gradients (B, d1, d2) of the tracked layers to those of the stored entries, float32.

        Low-rank ones, which a reduction made, are whitened already; so are those of the layers in `whitened`.
        """
        reduced = {n: made for n, made in gradients.items() if isinstance(made, LowRankMatrices) or n in whitened}
        encoded = {name: dense(made).float() for name, made in gradients.items() if name not in reduced}
        if self._sketches:
            encoded = {GLOBAL: self._global(encoded)}
        if self.config.normalize:
            squares = _summed([formed.flatten(1).square().sum(dim=1) for formed in encoded.values()])
            inverse = torch.where(squares > 0, squares.rsqrt(), 0).view(-1, 1, 1)
            encoded = {name: formed * inverse.to(formed.device) for name, formed in encoded.items()}
        if self._first_pass is not None:
            for name in encoded.keys() & self._first.keys():
                encoded[name] = self._first_pass.whiten(encoded[name], self._first_on(name, encoded[name].device))
        return {**encoded, **reduced}

    def _global(self, gradients: Mapping[str, Tensor]) -> Tensor:
        for name, gradient in gradients.items():
            self._sketches[name] = self._sketches[name].to(gradient.device)
        parts = [self._sketches[name].project(gradient.flatten(1)) for name, gradient in gradients.items()]
        return _summed(parts).unsqueeze(2)

    def _first_on(self, name: str, device: torch.device) -> Tensors:
        """What the first pass made of a layer, on the device of its gradients: brought there once."""
        placed = self._placed.get(name, self._first[name])
        if any(tensor.device != device for tensor in placed.values()):
            placed = {part: tensor.to(device) for part, tensor in placed.items()}
        self._placed[name] = placed
        return placed


def _summed(parts: Sequence[Tensor]) -> Tensor:
    """The sum over layers, which may be on several devices."""
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(dim=0)


def draw_global(name: str, size: int, config: InfluenceConfig) -> SparseProjection:
    """The part of the global projection that takes in layer `name`, of d1 d2 = `size` numbers."""
    assert config.projection_dim is not None
    return SparseProjection.draw(size, config.projection_dim, seed=config.seed, name=f"{name}/global")


def module_entry(tracked: TrackedModule, config: InfluenceConfig) -> ModuleEntry:
    """A tracked layer at the size to which the config projects it; nothing is drawn yet.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: `factor_rank` is above what the layer has.
    """
    d1, d2 = config.projected_shape(*tracked.shape.widths)
    if _above_rank(config, tracked.matrix_shape, (d1, d2)):
        raise ConfigError(
            f"factor_rank={config.factor_rank} is above the limit of module '{tracked.name}': its projected "
            f"gradient is {d1} x {d2}, so the rank is at most {min(d1, d2)}. Lower factor_rank or "
            "projection_factor, or leave the module out."
        )
    shape = tracked.shape
    return ModuleEntry(
        tracked.name,
        tracked.kind.name,
        *shape.features,
        d1,
        d2,
        "",
        parameter=tracked.parameter,
        in_width=shape.in_width,
        out_width=shape.out_width,
    )


def sharing_inputs(entries: Sequence[ModuleEntry], shared: Mapping[str, str]) -> list[ModuleEntry]:
    """Layers with the same inputs have one projection of them and one second moment, those of the last.

    (Of queries, keys and values, the last are reached by a gradient wherever any of the three is.)

    Args:
        entries (`Sequence[ModuleEntry]`): the layers.
        shared (`Mapping[str, str]`): by name, what layers with the same inputs have in common.
    """
    last = {shared.get(entry.name, entry.name): entry.name for entry in entries}
    owners = [last[shared.get(entry.name, entry.name)] for entry in entries]
    return [e if of == e.name else replace(e, input_of=of) for e, of in zip(entries, owners, strict=True)]


def _above_rank(config: InfluenceConfig, shape: tuple[int, int], projected: tuple[int, int]) -> bool:
    """Whether a projection leaves less than `factor_rank` of a gradient that had as much. A layer that is thin of
    itself (a bias, LoRA of rank 1) may be: what is stored beyond its rank is zero, or makes coarse numbers finer."""
    rank = config.factor_rank or 1
    return min(projected) < rank and (rank <= min(shape) or rank > _MOST_PAIRS)


def draw_projection(entry: ModuleEntry, config: InfluenceConfig) -> tuple[TwoSidedProjection, str]:
    """A layer's two-sided projection, and the hash of all that is drawn for it."""
    folded = [
        d < width // config.projection_factor for d, width in zip((entry.d1, entry.d2), entry.widths, strict=True)
    ]
    drawn = TwoSidedProjection.draw(
        (entry.in_features, entry.out_features),
        (entry.d1, entry.d2),
        seed=config.seed,
        name=entry.name,
        in_name=entry.input_of,
        blocks=entry.out_features // entry.widths[1],
        folded=(folded[0], folded[1]),
    )
    if config.projection_dim is not None:
        return drawn, draw_global(entry.name, entry.d1 * entry.d2, config).sha256()
    return drawn, drawn.sha256()


def checked_projection(entry: ModuleEntry, config: InfluenceConfig) -> TwoSidedProjection:
    """The projection of an indexed layer, drawn again.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: config and layer do not go together.
        [`~lorif_hf.errors.ModelMismatchError`]: the index was made with another projection.
    """
    shape = config.projected_shape(*entry.widths)
    features = entry.in_features, entry.out_features
    if (entry.d1, entry.d2) != shape or _above_rank(config, features, shape):
        raise IndexCorruptedError(
            MANIFEST,
            f"module '{entry.name}' is {entry.d1} x {entry.d2}; its config makes it {shape[0]} x {shape[1]}, at rank "
            f"{config.factor_rank}",
        )
    drawn, sha256 = draw_projection(entry, config)
    if sha256 != entry.projection_sha256:
        raise ModelMismatchError(
            f"The index was made with another projection of module '{entry.name}' than the one its config draws: its "
            "manifest was edited, or a lorif-hf that draws otherwise made it. Build the index again."
        )
    return drawn
