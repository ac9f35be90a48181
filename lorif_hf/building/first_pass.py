"""The curvature's first pass: over a sample of rows, once for each group of layers that fits into memory."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..algebra.statistic import Statistic
from ..curvature import FirstPass, Tensors
from ..errors import RecordingError, out_of_memory
from ..progress import progress
from ..recording.recorder import GradientRecorder
from ..recording.rows import TrainingRows
from ..storage.files import is_intact, write_tensors
from ..storage.layout import ModuleEntry
from .dry_run import first_pass_too_large
from .layer_groups import layer_groups
from .recording_pass import RecordingPass


logger = logging.getLogger(__name__)

RecorderOf = Callable[[Mapping[str, Statistic]], GradientRecorder]
"""A recorder of the layers of these statistics alone, which forms no gradients."""


class Gathering:
    """Gathers what a curvature must know before anything is stored. What a killed build had gathered is kept.

    Args:
        first_pass (`FirstPass`): what it must know.
        entries (`Sequence[ModuleEntry]`): the tracked layers.
        folder (`Path`): the build's own, where what is gathered is kept: a file for each group of layers.
    """

    def __init__(self, first_pass: FirstPass, entries: Sequence[ModuleEntry], folder: Path):
        self.first_pass, self.entries, self.folder = first_pass, entries, folder

    def run(self, rows: TrainingRows, passing: RecordingPass, recorder_of: RecorderOf, limit: int | None) -> None:
        """Gather what is missing.

        Args:
            rows (`TrainingRows`): the training set, of which a sample is taken.
            passing (`RecordingPass`): takes it through the model.
            recorder_of (`RecorderOf`): makes the recorder of a group.
            limit (`int` or `None`): bytes that the moments of a group may take. Where they do not fit after all,
                groups of half as much are tried.

        Raises:
            [`~lorif_hf.errors.ConfigError`]: those of a single layer do not fit into memory.
            [`~lorif_hf.errors.RecordingError`]: what was gathered of a layer cannot be used.
        """
        for path in self._files():
            if not is_intact(path):
                path.unlink()
        done = self._gathered()
        waiting = layer_groups([e for e in self.entries if e.name not in done], self._size, limit)
        if len(waiting) > 1:
            logger.info("The moments of all layers do not fit into memory at once: %d passes.", len(waiting))
        while waiting:
            group = waiting.pop(0)
            try:
                self._gather(group, rows, passing, recorder_of)
            except (MemoryError, RuntimeError, RecordingError) as error:
                if not (out_of_memory(error) or out_of_memory(error.__cause__)):
                    raise
                halves = layer_groups(group, self._size, sum(map(self._size, group)) // 2)
                if len(halves) == 1 and isinstance(error, RecordingError):
                    raise
                if len(halves) == 1:
                    raise first_pass_too_large(self.first_pass, group) from error
                logger.warning("Out of memory with the moments of %d layers at once: half as many.", len(group))
                waiting[:0] = halves

    def tensors(self) -> dict[str, Tensors]:
        """What was gathered, by layer. Layers with the same inputs have what is kept of those in common."""
        tensors: dict[str, Tensors] = {entry.name: {} for entry in self.entries}
        for name, tensor in self.stored().items():
            module, _, part = name.rpartition(".")
            tensors[module][part] = tensor
        for entry in self.entries:
            if entry.input_of is not None:
                tensors[entry.name] = {**tensors[entry.input_of], **tensors[entry.name]}
        return tensors

    def stored(self) -> dict[str, Tensor]:
        """The same as it is in the index's curvature file, "<module>.<name>"."""
        return {name: tensor for path in self._files() for name, tensor in load_file(path).items()}

    def _gathered(self) -> set[str]:
        names: set[str] = set()
        for path in self._files():
            with safe_open(path, "pt") as file:
                names |= {name.rpartition(".")[0] for name in file.keys()}
        return names

    def _gather(
        self, group: Sequence[ModuleEntry], rows: TrainingRows, passing: RecordingPass, recorder_of: RecorderOf
    ) -> None:
        statistics = {entry.name: self.first_pass.statistic(entry) for entry in group}
        sample = rows.sample(self.first_pass.samples)
        recorder: AbstractContextManager[GradientRecorder] = recorder_of(statistics)
        with recorder as entered, progress(len(sample), "First pass", "examples") as bar:
            for numbers, _, _ in passing.run(entered, sample):
                bar.update(len(numbers))
        scale = rows.count / len(sample)
        tensors: dict[str, Tensor] = {}
        with progress(len(group), "Whiteners", "modules") as bar:
            for entry in group:
                kept = self.first_pass.tensors(entry, statistics.pop(entry.name), scale)
                tensors |= {f"{entry.name}.{part}": tensor for part, tensor in kept.items()}
                bar.update()
        write_tensors(self._path(group[0]), tensors)

    def _size(self, entry: ModuleEntry) -> int:
        return self.first_pass.cost(entry).memory

    def _path(self, first: ModuleEntry) -> Path:
        return self.folder / f"first-pass-{[e.name for e in self.entries].index(first.name) + 1:05d}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("first-pass-*.safetensors"))
