"""Shards of factors: written whole, one file per range of rows; read one module or one range at a time."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ..errors import IndexCorruptedError
from .files import TensorReader, TensorSpan, write_tensors
from .layout import CURVATURE, FactorShard, FileEntry, ModuleEntry
from .store import LocalStore


Factors = tuple[Tensor, Tensor]
"""left (n, d1, c) and right (n, d2, c) of one module, in the index's storage dtype."""


def write_shard(path: Path, factors: Mapping[str, Factors]) -> None:
    """Write the factors of a range of rows, per module."""
    tensors = {}
    for module, (left, right) in factors.items():
        tensors[f"{module}.u"], tensors[f"{module}.v"] = left, right
    write_tensors(path, tensors)


class ShardReader:
    """Reads the factors and the curvature of an index, from disk by memory map or from the Hub by range.

    Args:
        store (`LocalStore`): where the files are.
        shards (`list[FactorShard]`): the factor files.
        curvature (`FileEntry` or `None`): the curvature file, once there is one.
        dtype (`torch.dtype`): storage type of the factors.
        rank (`int`): c.
    """

    def __init__(
        self,
        store: LocalStore,
        shards: list[FactorShard],
        curvature: FileEntry | None,
        dtype: torch.dtype,
        rank: int,
    ):
        self.store = store
        self.shards = shards
        self._curvature = curvature
        self.dtype = dtype
        self.rank = rank

    def load(
        self, shard: FactorShard, modules: Sequence[ModuleEntry], rows: Tensor | None = None
    ) -> dict[str, Factors]:
        """The factors of some modules in one shard: all rows, or those in `rows` (ascending, in the shard)."""
        file = self.store.tensors(shard)
        for module in modules:
            for side, extent in (("u", module.d1), ("v", module.d2)):
                name = f"{module.name}.{side}"
                _expect(file.file, name, file.span(name), (shard.rows, extent, self.rank), self.dtype)
        if rows is None:
            file.prefetch([f"{module.name}.{side}" for module in modules for side in "uv"])
        return {
            module.name: (_rows(file, f"{module.name}.u", rows), _rows(file, f"{module.name}.v", rows))
            for module in modules
        }

    def stream(
        self, modules: Sequence[ModuleEntry], rows: Tensor | None = None
    ) -> Iterator[tuple[int, FactorShard, dict[str, Factors]]]:
        """The factors shard by shard, of all rows or of the selected ones: (rows given before, shard, factors).

        The next shard is read while the caller works on this one: two are held at most.

        Args:
            modules (`Sequence[ModuleEntry]`): whose factors.
            rows (`Tensor`, *optional*): row numbers of the index, ascending; shards without any are not touched.
        """
        tasks: list[tuple[int, FactorShard, Tensor | None]] = []
        for shard in self.shards:
            if rows is None:
                tasks.append((shard.start, shard, None))
                continue
            first, last = torch.searchsorted(rows, torch.tensor([shard.start, shard.stop])).tolist()
            if first < last:
                tasks.append((first, shard, rows[first:last] - shard.start))
        with ThreadPoolExecutor(1, thread_name_prefix="lorif-read-ahead") as ahead:
            following = [ahead.submit(self.load, shard, modules, some) for _, shard, some in tasks[:1]]
            for number, (position, shard, _) in enumerate(tasks):
                factors = following.pop().result()
                for _, next_shard, some in tasks[number + 1 : number + 2]:
                    following.append(ahead.submit(self.load, next_shard, modules, some))
                yield position, shard, factors
                del factors

    def blocks(self, module: ModuleEntry) -> Iterator[Factors]:
        """One module's factors in row order, a shard at a time."""
        for shard in self.shards:
            yield self.load(shard, [module])[module.name]

    def curvature(self, module: ModuleEntry) -> tuple[Tensor, Tensor, float, float]:
        """eigenvectors (D, r), eigenvalues (r,), damping and trace of one module."""
        assert self._curvature is not None
        file = self.store.tensors(self._curvature)
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


def _rows(file: TensorReader, name: str, rows: Tensor | None) -> Tensor:
    """A tensor, or some of its rows read as runs of neighbours."""
    if rows is None:
        return file.read(name)
    breaks = (torch.nonzero(rows.diff() != 1)[:, 0] + 1).tolist()
    runs = zip([0, *breaks], [*breaks, len(rows)], strict=True)
    return torch.cat([file.read(name, int(rows[a]), int(rows[b - 1]) + 1) for a, b in runs])


def _expect(file: str, name: str, span: TensorSpan, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if span.shape != shape or span.dtype != dtype:
        raise IndexCorruptedError(
            file, f"tensor '{name}' is {span.dtype} {span.shape}, the manifest makes it {dtype} {shape}"
        )
