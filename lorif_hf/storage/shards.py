"""Shards of factors: written whole, one file per range of rows; read one module or one range at a time."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import IndexCorruptedError
from .files import TensorFile, TensorSpan, write_tensors
from .layout import CURVATURE, FileEntry, ModuleEntry, Shard


def write_shard(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write the factors of a range of rows.

    Args:
        path (`Path`): the file.
        factors (`Mapping`): per module left (n, d1, c) and right (n, d2, c), in the index's storage dtype.
    """
    tensors = {}
    for module, (left, right) in factors.items():
        tensors[f"{module}.u"], tensors[f"{module}.v"] = left, right
    write_tensors(path, tensors)


class ShardReader:
    """Reads the factors and the curvature of an index in a folder, by memory map.

    Args:
        folder (`Path`): the index.
        shards (`list[Shard]`): its factor files; each is checked against its entry once, before its first use.
        curvature (`FileEntry` or `None`): its curvature file, once there is one.
        dtype (`torch.dtype`): storage type of the factors.
        rank (`int`): c.
    """

    def __init__(self, folder: Path, shards: list[Shard], curvature: FileEntry | None, dtype: torch.dtype, rank: int):
        self.shards = shards
        self._curvature = curvature
        self.dtype = dtype
        self.rank = rank
        self._open = lru_cache(maxsize=None)(lambda entry: TensorFile(folder, entry))

    def factors(self, module: ModuleEntry, shard: Shard) -> tuple[Tensor, Tensor]:
        """left (n, d1, c) and right (n, d2, c) of one module and shard, mapped and not yet read."""
        file = self._open(shard)
        pair = []
        for side, extent in (("u", module.d1), ("v", module.d2)):
            name = f"{module.name}.{side}"
            _expect(file.file, name, file.span(name), (shard.rows, extent, self.rank), self.dtype)
            pair.append(file.read(name))
        return pair[0], pair[1]

    def blocks(self, module: ModuleEntry) -> Iterator[tuple[Tensor, Tensor]]:
        """The module's factors in row order, a shard at a time."""
        for shard in self.shards:
            yield self.factors(module, shard)

    def curvature(self, module: ModuleEntry) -> tuple[Tensor, Tensor, float, float]:
        """eigenvectors (D, r), eigenvalues (r,), damping and trace of one module."""
        file = self._open(self._curvature)
        names = [f"{module.name}.{part}" for part in ("eigenvectors", "eigenvalues", "damping", "trace")]
        rank = (file.span(names[1]).shape or (0,))[0]
        _expect(file.file, names[0], file.span(names[0]), (module.d1 * module.d2, rank), torch.float32)
        _expect(file.file, names[1], file.span(names[1]), (rank,), torch.float32)
        for name in names[2:]:
            _expect(file.file, name, file.span(name), (), torch.float64)
        eigenvectors, eigenvalues, damping, trace = (file.read(name) for name in names)
        for name, value in zip(names, (eigenvectors, eigenvalues, damping, trace), strict=True):
            if not bool(torch.isfinite(value.sum())) or (name != names[0] and bool((value < 0).any())):
                raise IndexCorruptedError(CURVATURE, f"tensor '{name}' holds numbers that no curvature has")
        if not damping > 0:
            raise IndexCorruptedError(CURVATURE, f"the damping of '{module.name}' is {float(damping)}, not positive")
        return eigenvectors, eigenvalues, float(damping), float(trace)


def _expect(file: str, name: str, span: TensorSpan, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if span.shape != shape or span.dtype != dtype:
        raise IndexCorruptedError(
            file, f"tensor '{name}' is {span.dtype} {span.shape}, the manifest makes it {dtype} {shape}"
        )
