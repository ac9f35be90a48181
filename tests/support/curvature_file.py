"""A curvature file of chosen tensors, as a query reads it."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lorif_hf.storage.files import tensor_entry, write_tensors
from lorif_hf.storage.layout import CURVATURE, ModuleEntry
from lorif_hf.storage.shards import ModuleTensors, ShardReader
from lorif_hf.storage.store import LocalStore


def module_tensors(folder: Path, tensors: Mapping[str, Tensor], module: ModuleEntry) -> ModuleTensors:
    """Writes the tensors, which have their names in the file, and gives those of one module."""
    write_tensors(folder / CURVATURE, tensors)
    return ShardReader(LocalStore(folder), [], tensor_entry(folder, CURVATURE), lambda d1, d2: {}).curvature(module)
