"""Fitting each layer's curvature to what was stored, one resumable file a layer."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .algebra import curvature
from .config import InfluenceConfig
from .progress import progress
from .storage.files import is_intact, write_tensors
from .storage.layout import ModuleEntry
from .storage.shards import ShardReader


def fit_curvature(
    reader: ShardReader,
    entries: Sequence[ModuleEntry],
    count: int,
    config: InfluenceConfig,
    path: Callable[[int], Path],
) -> tuple[dict[str, Tensor], Tensor]:
    """Fit what is missing.

    Args:
        reader (`ShardReader`): of the recorded shards.
        entries (`Sequence[ModuleEntry]`): what is stored.
        count (`int`): N.
        config (`InfluenceConfig`): rank and damping.
        path (`Callable`): the file of entry 0, 1, ...

    Returns:
        `tuple[dict[str, Tensor], Tensor]`: the curvature's tensors under the names of the index, and each example's
        self-influence over all entries, float64 (N,).
    """
    tensors: dict[str, Tensor] = {}
    influence = torch.zeros(count, dtype=torch.float64)
    with progress(len(entries), "Fitting curvature", "modules") as bar:
        for number, entry in enumerate(entries):
            if not is_intact(path(number)):
                _fit(reader, entry, count, config, path(number))
            fitted = load_file(path(number))
            influence += fitted.pop("self_influence").double()
            tensors |= {f"{entry.name}.{name}": tensor for name, tensor in fitted.items()}
            bar.update()
    return tensors, influence


def _fit(reader: ShardReader, entry: ModuleEntry, count: int, config: InfluenceConfig, path: Path) -> None:
    codec = config.codec()

    def blocks() -> Iterator[tuple[Tensor, Tensor | None]]:
        return (codec.factors(parts, entry.d1, entry.d2) for parts in reader.blocks(entry))

    rank, damping = config.curvature_rank, config.damping
    fitted = curvature.fit(blocks, count=count, dim=entry.d1 * entry.d2, rank=rank, damping=damping)
    influence = [curvature.self_influence(left, right, fitted) for left, right in blocks()]
    write_tensors(
        path,
        {
            "eigenvectors": fitted.eigenvectors,
            "eigenvalues": fitted.eigenvalues,
            "damping": torch.tensor(fitted.damping, dtype=torch.float64),
            "trace": torch.tensor(fitted.trace, dtype=torch.float64),
            "self_influence": torch.cat(influence),
        },
    )
