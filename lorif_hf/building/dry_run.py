"""What can go wrong at the end of a build for a reason that is there at its beginning, tried at the beginning."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import InfluenceConfig
from ..coverage import Coverage
from ..curvature import FirstPass
from ..curvature.encoding import bytes_per_example
from ..errors import ConfigError, DiskFullError
from ..storage.layout import TOKENIZER, ModuleEntry
from ..storage.tokenizer import save_processing_class
from .machine import free_disk, machine_memory


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


def check_disk(folder: Path, config: InfluenceConfig, entries: Sequence[ModuleEntry], count: int) -> None:
    """See that the factors fit on the disk beside what is there.

    Raises:
        [`~lorif_hf.errors.DiskFullError`]: says how much they need.
    """
    needed = count * bytes_per_example(config, entries)
    there = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if folder.exists() else 0
    free = free_disk(folder)
    if needed - there > free:
        raise DiskFullError(
            f"The factors of {count} rows take {needed / 2**30:.2f} GiB; the disk of {folder} has "
            f"{free / 2**30:.2f} GiB left. Choose a folder on another disk, or a smaller config "
            "(InfluenceConfig.smallest(), a higher projection_factor)."
        )


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
