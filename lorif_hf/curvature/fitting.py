"""Fitting each layer's curvature to what was stored, one resumable file a layer."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..algebra import curvature
from ..algebra.gradients import StoredGradients
from ..algebra.planning import Plan, plan_fit
from ..config import InfluenceConfig
from ..errors import ConfigError, RecordingError
from ..progress import progress
from ..storage.files import is_intact, write_tensors
from ..storage.layout import ModuleEntry
from ..storage.shards import ShardReader


def fit_curvature(
    reader: ShardReader,
    entries: Sequence[ModuleEntry],
    count: int,
    config: InfluenceConfig,
    path: Callable[[int], Path],
    max_memory: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Fit what is missing.

    Args:
        reader (`ShardReader`): of the recorded shards.
        entries (`Sequence[ModuleEntry]`): what is stored.
        count (`int`): N.
        config (`InfluenceConfig`): rank, damping and passes.
        path (`Callable`): the file of entry 0, 1, ...
        max_memory (`int`, *optional*): bytes that one layer may take, its result included; by default 2 GiB, or the
            least that works where that is more.

    Returns:
        `tuple[dict[str, Tensor], Tensor]`: the curvature's tensors under the names of the index, and each example's
        self-influence over all entries, float64 (N,).

    Raises:
        [`~lorif_hf.errors.ConfigError`]: `max_memory` is less than the least that works.
        [`~lorif_hf.errors.RecordingError`]: gradients whose squares are beyond float32.
    """
    plans = plan_curvature(entries, count, config, max_memory)
    tensors: dict[str, Tensor] = {}
    influence = torch.zeros(count, dtype=torch.float64)
    with progress(len(entries), "Fitting curvature", "modules") as bar:
        for number, (entry, plan) in enumerate(zip(entries, plans, strict=True)):
            if not is_intact(path(number)):
                _fit(stored_gradients(reader, entry, count, config), plan, entry.name, config.damping, path(number))
            fitted = load_file(path(number))
            influence += fitted.pop("self_influence").double()
            tensors |= {f"{entry.name}.{name}": tensor for name, tensor in fitted.items()}
            bar.update()
    return tensors, influence


def plan_curvature(
    entries: Sequence[ModuleEntry], count: int, config: InfluenceConfig, max_memory: int | None = None
) -> list[Plan]:
    """How each entry will be fitted. Needs nothing that was recorded: a build can ask before it begins.

    Args and errors as in [`fit_curvature`].
    """
    plans = []
    for entry in entries:
        stored = StoredGradients(lambda rows: iter(()), count, entry.d1, entry.d2, config.factor_rank)
        plan = plan_fit(stored, config.curvature_rank, passes=config.curvature_passes, max_memory=max_memory)
        if max_memory is not None and plan.memory > max_memory:
            raise ConfigError(
                f"max_memory={max_memory} is too small for the curvature of module '{entry.name}', {entry.d1} x "
                f"{entry.d2} at rank {plan.rank}: the least that works is {plan.memory} bytes. Allow as much, or "
                "set a lower curvature_rank or a higher projection_factor."
            )
        plans.append(plan)
    return plans


def stored_gradients(reader: ShardReader, entry: ModuleEntry, count: int, config: InfluenceConfig) -> StoredGradients:
    """The recorded gradients of one entry, read a range of rows at a time."""
    codec = config.codec()

    def blocks(rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        for shard in reader.shards:
            for start in range(0, shard.rows, rows):
                some = torch.arange(start, min(start + rows, shard.rows))
                yield codec.factors(reader.load(shard, [entry], some)[entry.name], entry.d1, entry.d2)

    return StoredGradients(blocks, count, entry.d1, entry.d2, config.factor_rank)


def _fit(stored: StoredGradients, plan: Plan, name: str, damping: float, path: Path) -> None:
    try:
        fitted = curvature.fit(stored, plan, damping=damping)
    except ValueError as error:
        raise RecordingError(
            f"The curvature of module '{name}' cannot be fitted: {error}. Leave it out with exclude_modules."
        ) from None
    influence = fitted.self_influence
    if influence is None:
        step = max(1, plan.block // (2 * stored.dim))
        influence = torch.cat(
            [curvature.self_influence(left, right, fitted, plan.block) for left, right in stored.blocks(step)]
        )
    write_tensors(
        path,
        {
            "eigenvectors": fitted.eigenvectors,
            "eigenvalues": fitted.eigenvalues,
            "damping": torch.tensor(fitted.damping, dtype=torch.float64),
            "trace": torch.tensor(fitted.trace, dtype=torch.float64),
            "self_influence": influence,
        },
    )


def in_bytes(size: int | str | None) -> int | None:
    """A size like 2_000_000_000, "2GB" or "512MiB" in bytes.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: it is none.
    """
    if size is None:
        return None
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(i?)B?\s*", size, re.IGNORECASE)
        if found:
            power = " KMGT".index(found[2].upper() or " ")
            size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f'max_memory must be a number of bytes or a size like "2GB", got {size!r}.')
    return size
