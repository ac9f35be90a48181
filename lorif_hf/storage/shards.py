"""Shards of factors: written whole, one file per range of rows; read one module or one range at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import IndexCorruptedError
from .files import TensorReader, TensorSpan, write_tensors
from .layout import FactorShard, ModuleEntry, TensorEntry
from .store import Store


Loaded = dict[str, dict[str, Tensor]]
"""By module, the stored tensors by name ("u", "v", ...), examples along the first axis."""

PartShapes = Callable[[int, int], Mapping[str, tuple[torch.dtype, tuple[int, ...]]]]
"""Of a module's d1 and d2: its parts, the dtype of each and the shape of one example's share."""

WEIGHTS = "weights"
"""Name of the tensor, float32 (n,), that says what each example of a shard counts for, where they differ."""


def write_shard(path: Path, parts: Mapping[str, Mapping[str, Tensor]], weights: Tensor | None = None) -> None:
    """Write what is stored of a range of rows, per module."""
    tensors = {f"{module}.{part}": tensor for module, of_module in parts.items() for part, tensor in of_module.items()}
    write_tensors(path, tensors if weights is None else {**tensors, WEIGHTS: weights})


@dataclass(frozen=True)
class ShardTask:
    """A shard to be read.

    Args:
        position (`int`): selected rows before it.
        shard (`FactorShard`): which.
        chosen (`Tensor` or `None`): its rows to be read, counted in the shard, ascending; `None`: all.
    """

    position: int
    shard: FactorShard
    chosen: Tensor | None

    @property
    def count(self) -> int:
        """Rows to be read."""
        return self.shard.rows if self.chosen is None else len(self.chosen)


class ShardReader:
    """Reads the factors and the curvature of an index, from disk by memory map or from the Hub by range.

    Args:
        store (`Store`): where the files are.
        shards (`list[FactorShard]`): the factor files.
        curvature (`TensorEntry` or `None`): the curvature file, once there is one.
        layout (`PartShapes`): what is stored of a module.
    """

    def __init__(self, store: Store, shards: list[FactorShard], curvature: TensorEntry | None, layout: PartShapes):
        self.store = store
        self.shards = shards
        self._curvature = curvature
        self.layout = layout

    def load(self, shard: FactorShard, modules: Sequence[ModuleEntry], rows: Tensor | None = None) -> Loaded:
        """What is stored of some modules in one shard: all rows, or those in `rows` (ascending, in the shard)."""
        file, layouts = self._checked(shard, modules)
        if rows is None:
            file.prefetch([f"{module}.{part}" for module, parts in layouts.items() for part in parts])
        return {
            module: {part: _rows(file, f"{module}.{part}", rows) for part in parts}
            for module, parts in layouts.items()
        }

    def check(self, modules: Sequence[ModuleEntry], rows: Tensor | None = None) -> None:
        """See that what is stored has the shapes that config and manifest claim, before anything is made of that size.

        Looks at the first shard that holds any of the rows.
        """
        for shard in self.shards:
            if rows is None or bool(((rows >= shard.start) & (rows < shard.stop)).any()):
                self._checked(shard, modules)
                return

    def _checked(self, shard: FactorShard, modules: Sequence[ModuleEntry]) -> tuple[TensorReader, dict[str, Any]]:
        file = self.store.tensors(shard)
        layouts = {module.name: self.layout(module.d1, module.d2) for module in modules}
        for module, parts in layouts.items():
            for part, (dtype, shape) in parts.items():
                name = f"{module}.{part}"
                _expect(file.file, name, file.span(name), (shard.rows, *shape), dtype)
        return file, layouts

    def weights(self, shard: FactorShard, rows: Tensor | None = None) -> Tensor:
        """What the examples of a shard count for: float32 (n,), finite and not negative."""
        file = self.store.tensors(shard)
        _expect(file.file, WEIGHTS, file.span(WEIGHTS), (shard.rows,), torch.float32)
        weights = _rows(file, WEIGHTS, rows)
        if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
            raise IndexCorruptedError(file.file, f"tensor '{WEIGHTS}' holds numbers that no weight has")
        return weights

    def tasks(self, rows: Tensor | None = None) -> list["ShardTask"]:
        """The shards that hold all rows or the selected ones (ascending), in row order."""
        if rows is None:
            return [ShardTask(shard.start, shard, None) for shard in self.shards]
        tasks = []
        for shard in self.shards:
            first, last = torch.searchsorted(rows, torch.tensor([shard.start, shard.stop])).tolist()
            if first < last:
                tasks.append(ShardTask(first, shard, rows[first:last] - shard.start))
        return tasks

    def stream(
        self, modules: Sequence[ModuleEntry], tasks: Iterable["ShardTask"]
    ) -> Iterator[tuple["ShardTask", Loaded]]:
        """What is stored of some modules, shard by shard.

        The next shard is read while the caller works on this one: two are held at most. A task is taken from `tasks`
        when its turn to be read comes, not before.
        """
        todo = iter(tasks)
        with ThreadPoolExecutor(1, thread_name_prefix="lorif-read-ahead") as ahead:

            def begin() -> Any:
                task = next(todo, None)
                return task and (task, ahead.submit(self.load, task.shard, modules, task.chosen))

            following = begin()
            while following:
                task, reading = following
                parts = reading.result()
                following = reading = None  # type: ignore[assignment]
                following = begin()
                yield task, parts
                del parts

    def curvature(self, module: ModuleEntry) -> "ModuleTensors":
        """What the curvature file holds of one module."""
        assert self._curvature is not None
        return ModuleTensors(self.store.tensors(self._curvature), module.name)


class ModuleTensors:
    """The tensors that the curvature file holds of one module, each checked as it is read.

    Args:
        file (`TensorReader`): the curvature file.
        module (`str`): the module's name.
    """

    def __init__(self, file: TensorReader, module: str):
        self._file, self._module = file, module

    def of(self, module: str) -> "ModuleTensors":
        """Those of another module."""
        return ModuleTensors(self._file, module)

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape that the file declares for a tensor. Nothing is allocated."""
        return self._file.span(f"{self._module}.{part}").shape

    def read(
        self,
        part: str,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        least: float = -math.inf,
    ) -> Tensor:
        """A tensor of the expected shape and dtype, finite and nowhere below `least`.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`]: it is not; the shape before anything is allocated.
        """
        name = f"{self._module}.{part}"
        _expect(self._file.file, name, self._file.span(name), shape, dtype)
        tensor = self._file.read(name)
        if not bool(torch.isfinite(tensor.sum())) or (least > -math.inf and bool((tensor < least).any())):
            below = "" if least == -math.inf else f" or numbers below {least:g}"
            raise IndexCorruptedError(self._file.file, f"tensor '{name}' holds NaN, infinity{below}")
        return tensor


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
