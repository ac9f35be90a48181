"""What can go wrong at the end of a build for a reason that is there at its beginning, tried at the beginning."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..coverage import Coverage
from ..curvature import FirstPass
from ..errors import ConfigError, DiskFullError
from ..recording.stored_weights import execution_device
from ..storage.layout import TOKENIZER, ModuleEntry
from ..storage.tokenizer import save_processing_class
from .machine import free_disk, machine_memory
from .sizes import SHARDS, Sizes


logger = logging.getLogger(__name__)

_LITTLE = 0.5  # of the trained parameters: an index that covers less is warned of


def check_processing_class(processing_class: Any) -> None:
    """Save the tokenizer somewhere else first.

    Raises:
        [`~lorif_hf.errors.ProcessingClassError`]: it cannot be saved.
    """
    if processing_class is not None:
        with tempfile.TemporaryDirectory() as folder:
            save_processing_class(processing_class, Path(folder) / TOKENIZER)


def check_disk(folder: Path, sizes: Sizes, text_bytes: int = 0) -> None:
    """See that the index fits on the disk beside what is there, and beside the build's own files, which are deleted
    only once it is whole.

    Args:
        folder (`Path`): of the index.
        sizes (`Sizes`): of the build.
        text_bytes (`int`, *optional*, defaults to 0): of the example tables, roughly.

    Raises:
        [`~lorif_hf.errors.DiskFullError`]: says how much they need.
    """
    needed = sizes.disk + text_bytes
    there = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if folder.exists() else 0
    free = free_disk(folder)
    if needed - there > free:
        curvature = sizes.fixed + sizes.staged
        raise DiskFullError(
            f"The index of {sizes.rows} rows takes {_told(needed)} while it is built: {_told(sizes.factors)} of "
            f"factors, {_told(curvature)} of whiteners and eigenvectors, {_told(sizes.noted + text_bytes)} of tables "
            f"and texts. The disk of {folder} has {_told(free)} left. Choose a folder on another disk, or a smaller "
            "config: InfluenceConfig.sized(model, num_examples, index_size=...) finds the best that fits."
        )


def check_room(sizes: Sizes, max_memory: int | None, model: nn.Module) -> None:
    """See that what a build must hold at once, at the least, fits into memory beside the model.

    Args:
        sizes (`Sizes`): of the build.
        max_memory (`int` or `None`): bytes that the user allows for what is kept of layers.
        model (`nn.Module`): what is recorded.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: names the layer and the least that works.
    """
    narrower = "Set a lower max_projection_dim (half takes a quarter), or leave the layer out with exclude_modules."
    widest = f"the whiteners of '{sizes.widest}' and of the layers that must be there with it"
    if max_memory is not None and sizes.group > max_memory:
        raise ConfigError(
            f"max_memory={max_memory} is too small for {widest}: the least that works is {sizes.group} bytes. Allow "
            f"as much. {narrower}"
        )
    device = execution_device(model)
    if device.type == "cuda" and torch.cuda.is_available():
        free = torch.cuda.mem_get_info(device)[0]
        if sizes.group > free:
            raise ConfigError(f"{device} has {_told(free)} left; {widest} take {_told(sizes.group)}. {narrower}")
    machine = machine_memory()
    if machine is None:
        return
    room = max(0, machine - sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu"))
    fewer = (
        f"At {sizes.per_example} bytes a row, set shard_size to {_most_rows(sizes, room)} or less."
        if sizes.group < room
        else narrower
    )
    lower = "Set a lower curvature_rank or a higher projection_factor, or leave layers out with exclude_modules."
    needs = {
        widest: (sizes.group + sizes.moment, narrower),
        f"the fit of '{sizes.fitted}'": (sizes.fit, lower),
        "the curvature file, which is written at once,": (sizes.finish, lower if sizes.fit else narrower),
        "whiteners and the shards that are held at once": (sizes.group + sizes.shards, fewer),
    }
    for what, (needed, out) in needs.items():
        if needed > room:
            raise ConfigError(
                f"This machine has {_told(room)} of memory beside the model; {what} take {_told(needed)}. "
                f"{out} InfluenceConfig.sized(model, num_examples, max_memory=...) finds the best that fits."
            )


def _most_rows(sizes: Sizes, room: int) -> int:
    return max(1, (room - sizes.group) // (SHARDS * sizes.per_example))


def _told(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def first_pass_too_large(first_pass: FirstPass, entries: Sequence[ModuleEntry]) -> ConfigError:
    """The error of a first pass that does not fit into memory: what it needs, and what needs less."""
    needed = {entry.name: first_pass.cost(entry).memory for entry in entries}
    widest = max(entries, key=lambda entry: needed[entry.name])
    machine = machine_memory()
    has = "" if machine is None else f"; this machine has {machine / 2**30:.3g} GiB"
    return ConfigError(
        f"Whitening needs {sum(needed.values()) / 2**30:.3g} GiB for {len(entries)} layer{'s' * (len(entries) > 1)} "
        f"(the widest, '{widest.name}', is {widest.d1} x {widest.d2}){has}. Set a lower max_projection_dim (half "
        "takes a quarter), leave layers out with exclude_modules, or set whitening='none' with another curvature."
    )


def tell_coverage(coverage: Coverage) -> None:
    """Log how much of what was trained is tracked."""
    logger.log(logging.WARNING if coverage.share < _LITTLE else logging.INFO, "%s.", coverage)
