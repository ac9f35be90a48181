"""The best config for a budget of bytes and memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import nn

from ..building.sizes import Sizes, sizes_of, with_shards
from ..checks import whole_bytes, whole_number
from ..config import InfluenceConfig
from ..errors import ConfigError
from .costs import LaidOut
from .empty_models import empty_model
from .frontier import expected_quality


_CHOICES: dict[str, tuple[Any, ...]] = {
    "max_projection_dim": (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072),
    "factor_rank": (1, 2, 3, 4, 6, 8, 12, 16),
    "bits": (1, 2, 4),
    "whitening": ("kronecker", "none"),
}
"""What is tried of each field, from the least to the most."""

_SHARDS = (10_000, 5_000, 2_000, 1_000, 500, 200)  # rows: what must not be lost against what must be held


@dataclass(frozen=True)
class _Candidate:
    config: InfluenceConfig
    sizes: Sizes
    quality: float


def sized_config(
    model: nn.Module | str, num_examples: int, index_size: int | str | None, max_memory: int | str | None, changes: Any
) -> InfluenceConfig:
    """See [`InfluenceConfig.sized`]."""
    count = whole_number(num_examples, "num_examples", 1, ConfigError)
    size = whole_bytes(index_size, "index_size", ConfigError)
    memory = whole_bytes(max_memory, "max_memory", ConfigError)
    if size is None and memory is None:
        raise ConfigError('There is no budget: give index_size (like "20GB"), max_memory, or both.')
    laid_out = LaidOut(empty_model(model) if isinstance(model, str) else model, InfluenceConfig(**changes))
    candidates = list(_candidates(laid_out, count, changes, memory))
    if not candidates:
        laid_out.entries(InfluenceConfig(**changes))  # says what the layers are too small for
        raise ConfigError(f"No config with {changes} goes with the layers of this model.")
    fitting = [c for c in candidates if _fits(c, size, memory)]
    if not fitting:
        raise _too_small(candidates, size, memory, laid_out)
    return max(fitting, key=lambda c: (c.quality, -c.sizes.index, c.config.shard_size)).config


def _candidates(laid_out: LaidOut, count: int, changes: Any, memory: int | None) -> Iterator[_Candidate]:
    tried = {name: (None,) if name in changes else choices for name, choices in _CHOICES.items()}
    for values in product(*tried.values()):
        chosen = {name: value for name, value in zip(tried, values, strict=True) if value is not None} | changes
        if chosen["whitening"] == "none" and "curvature" not in changes:
            chosen["curvature"] = "none"
        try:
            config = InfluenceConfig(**chosen)
            entries = laid_out.entries(config)
        except ConfigError:
            continue  # of whitening without its curvature, or of more pairs than a side has
        sizes = sizes_of(config, entries, count)
        quality = expected_quality(config, entries)
        shards = [config.shard_size] if "shard_size" in changes else _SHARDS
        for rows in shards:
            held = with_shards(sizes, rows)
            if memory is None or held.memory <= memory or rows == shards[-1]:
                yield _Candidate(replace(config, shard_size=rows), held, quality)
                break


def _fits(candidate: _Candidate, size: int | None, memory: int | None) -> bool:
    within = size is None or candidate.sizes.index <= size
    return within and (memory is None or candidate.sizes.memory <= memory)


def _too_small(candidates: list[_Candidate], size: int | None, memory: int | None, laid_out: LaidOut) -> ConfigError:
    """The error of a budget in which nothing fits: what the least is, and for what."""
    smallest = min(candidates, key=lambda c: (c.sizes.index, c.sizes.memory))
    lightest = min(candidates, key=lambda c: (c.sizes.memory, c.sizes.index))
    if size is not None and smallest.sizes.index > size:
        sizes, layers = smallest.sizes, len(laid_out.modules)
        return ConfigError(
            f"index_size={size} is too small: the least that works is {sizes.index} bytes, {sizes.per_example} for "
            f"each of {sizes.rows} examples in {layers} layer{'s' * (layers > 1)} and {sizes.fixed} of whiteners and "
            f"the like, with {_told(smallest.config)}. Allow as much, leave layers out with exclude_modules, or index "
            "fewer rows."
        )
    if memory is not None and lightest.sizes.memory > memory:
        return ConfigError(f"max_memory={memory} is too small: {_least_memory(lightest, laid_out)}")
    # Either can be had, but not both.
    within = [c for c in candidates if size is None or c.sizes.index <= size]
    lightest = min(within, key=lambda c: (c.sizes.memory, c.sizes.index))
    return ConfigError(
        f"max_memory={memory} is too small for an index of {size} bytes: {_least_memory(lightest, laid_out)}"
    )


def _least_memory(candidate: _Candidate, laid_out: LaidOut) -> str:
    sizes = candidate.sizes
    what = {
        f"the moments of {len(laid_out.modules)} layers (the widest is {_named(sizes.widest, laid_out)})": (
            sizes.gathered + sizes.moment
        ),
        f"the curvature of {_named(sizes.fitted, laid_out)}": sizes.fit,
        f"whiteners and the shards of {candidate.config.shard_size} rows": sizes.gathered + sizes.shards,
    }
    most = max(what, key=lambda name: what[name])
    return (
        f"the least that works is {sizes.memory} bytes, for {most}, with {_told(candidate.config)}. Allow as much, or "
        "leave layers out with exclude_modules."
    )


def _named(name: str, laid_out: LaidOut) -> str:
    shape = next((t.matrix_shape for t in laid_out.modules if t.name == name), None)
    return f"'{name}'" if shape is None else f"'{name}', {shape[0]} x {shape[1]}"


def _told(config: InfluenceConfig) -> str:
    """The fields that were searched."""
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in (*_CHOICES, "shard_size"))
