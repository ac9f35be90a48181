"""Building an index: one recording pass over the rows, then the curvature, then the manifest that makes it whole.

A killed build goes on where it stopped: shards and fitted layers appear whole, under their final names or in a staging
folder, and the fingerprint of config, model and rows tells whether they are this build's.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor, nn

from .algebra import curvature as curvature_algebra
from .algebra.factors import factorize
from .algebra.projection import TwoSidedProjection
from .config import InfluenceConfig
from .dataset import TrainingRows, code_identity, tokens_per_example
from .errors import BuildFolderError, ConfigError, DatasetError, RecordingError
from .progress import progress
from .recording.identity import identify
from .recording.modules import tracked_modules, unwrap
from .recording.objectives import Objective, UserObjective, find_objective
from .recording.recorder import GradientRecorder, Recording
from .storage.examples import write_examples
from .storage.files import file_entry, header_sha256, is_intact, write_tensors, write_text
from .storage.layout import (
    CURVATURE,
    MANIFEST,
    STAGING,
    TOKENIZER,
    FactorShard,
    Manifest,
    ModuleEntry,
    Shard,
    example_file,
    factor_file,
)
from .storage.shards import ShardReader, write_shard
from .storage.store import LocalStore


logger = logging.getLogger(__name__)

_PATIENCE = 1000  # first rows, none with a target, before the pass is called off


class IndexBuilder:
    """Builds one index in one folder.

    Args:
        model (`nn.Module`): the unwrapped model.
        rows (`TrainingRows`): the training set.
        folder (`Path`): where the index goes; empty, absent, or holding this very build.
        config (`InfluenceConfig`): every choice that shapes the index.
        objective (`Objective`): the per-example loss.
        processing_class: the tokenizer that goes into the index, if any.
        batch_size (`int`): examples per forward pass.
        on_shard (`Callable`, *optional*): told of every finished factor file, also of those found finished.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: TrainingRows,
        folder: Path,
        config: InfluenceConfig,
        objective: Objective,
        processing_class: Any,
        batch_size: int,
        on_shard: Callable[[FactorShard], None] | None = None,
    ):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size must be an integer of at least 1, got {batch_size!r}.")
        self.model, self.rows, self.folder, self.config = model, rows, folder, config
        self.objective, self.processing_class, self.batch_size = objective, processing_class, batch_size
        self.on_shard = on_shard or (lambda shard: None)
        self._shards: dict[int, FactorShard] = {}
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.staging = folder / STAGING
        self.modules = tracked_modules(model, config.target_modules, config.exclude_modules)
        self.projections: dict[str, TwoSidedProjection] = {}
        self.entries = [self._module_entry(tracked) for tracked in self.modules]
        starts = range(0, rows.count, config.shard_size)
        self.ranges = [(start, min(start + config.shard_size, rows.count)) for start in starts]
        self._seen = self._empty = 0

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's identity, as the manifest has it."""
        return identify(self.model, self.modules).to_dict()

    @cached_property
    def fingerprint(self) -> str:
        """Hash over everything that the index depends on but the batch size, which changes it by rounding only."""
        identity = {
            "config": self.config.to_dict(),
            "model": self.identity,
            "modules": [(entry.name, entry.projection_sha256) for entry in self.entries],
            "objective": [self.objective.name, code_identity(self.objective.function)],
            "rows": self.rows.fingerprint(),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def check_first_batch(self) -> None:
        """Collate the first rows, so that a dataset that cannot be recorded shows before the pass begins."""
        next(iter(self.rows.batches(0, min(self.batch_size, self.rows.count), self.batch_size)))

    def run(self) -> None:
        """Build what is missing. Returns at once where the folder holds this build's finished index."""
        check_folder(self.folder)
        if (self.folder / MANIFEST).exists():
            built = Manifest.from_json((self.folder / MANIFEST).read_text(encoding="utf-8")).build
            if built != self.fingerprint:
                raise BuildFolderError(
                    f"{self.folder} holds an index of another model, dataset or config. Choose another folder or "
                    "delete this one."
                )
            shutil.rmtree(self.staging, ignore_errors=True)
            return
        with self._claimed():
            self._record_all()
            self._fit_all()
            self._finish()
        shutil.rmtree(self.staging)

    def _module_entry(self, tracked: Any) -> ModuleEntry:
        shape = (tracked.in_features, tracked.out_features)
        d1, d2 = self.config.projected_shape(*shape)
        if self.config.factor_rank > min(d1, d2):
            raise ConfigError(
                f"factor_rank={self.config.factor_rank} is above the limit of module '{tracked.name}': its projected "
                f"gradient is {d1} x {d2}, so the rank is at most {min(d1, d2)}. Lower factor_rank or "
                "projection_factor, or leave the module out."
            )
        drawn = TwoSidedProjection.draw(shape, (d1, d2), seed=self.config.seed, name=tracked.name)
        self.projections[tracked.name] = drawn
        return ModuleEntry(tracked.name, tracked.kind, *shape, d1, d2, drawn.sha256())

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the folder for this process, and see that what it holds is this build's."""
        self.staging.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.staging / "lock", timeout=0):
                note = self.staging / "build.json"
                begun = json.loads(note.read_text(encoding="utf-8"))["build"] if note.exists() else None
                if begun is None:
                    write_text(note, json.dumps({"build": self.fingerprint}))
                elif begun != self.fingerprint:
                    raise BuildFolderError(
                        f"{self.folder} holds an unfinished build of another model, dataset or config. Choose another "
                        "folder or delete this one."
                    )
                for left_over in self.folder.rglob("*.tmp"):  # of a write that was killed
                    left_over.unlink()
                yield
        except Timeout:
            raise BuildFolderError(f"Another process is building the index in {self.folder}.") from None

    def _record_all(self) -> None:
        missing = [shard for shard in range(len(self.ranges)) if not self._recorded(shard)]
        for shard in range(len(self.ranges)):
            if shard not in missing:
                self._finished(shard)
        done = self.rows.count - sum(self.ranges[shard][1] - self.ranges[shard][0] for shard in missing)
        if not missing:
            return
        if done:
            logger.info("Going on with %d of %d rows already recorded in %s.", done, self.rows.count, self.folder)
        recorder = GradientRecorder(self.model, self.modules, self.projections, self.objective)
        with recorder, progress(self.rows.count, "Recording", "examples", initial=done) as bar:
            for shard in missing:
                self._record_shard(recorder, shard, bar)
                self._finished(shard)
        if self._empty:
            logger.warning("%d rows have no target (all labels are -100); their scores are zero.", self._empty)

    def _recorded(self, shard: int) -> bool:
        """Whether a shard is there, whole and undamaged."""
        return is_intact(self._factor_path(shard)) and is_intact(self._rows_path(shard))

    def _finished(self, shard: int) -> None:
        start, stop = self.ranges[shard]
        entry = file_entry(self.folder, factor_file(shard, len(self.ranges)))
        header = header_sha256(self._factor_path(shard))
        self._shards[shard] = FactorShard(entry.file, entry.bytes, entry.sha256, start, stop - start, header)
        self.on_shard(self._shards[shard])

    def _record_shard(self, recorder: GradientRecorder, shard: int, bar: Any) -> None:
        start, stop = self.ranges[shard]
        factors: dict[str, tuple[list[Tensor], list[Tensor]]] = {entry.name: ([], []) for entry in self.entries}
        losses, tokens = [], []
        for rows, batch in self.rows.batches(start, stop, self.batch_size):
            recording = self._record_batch(recorder, batch, rows)
            if len(recording.losses) != len(rows):
                raise DatasetError(
                    f"The collator made {len(recording.losses)} examples of rows {rows.start} to {rows.stop - 1}: it "
                    "packs or flattens them (padding_free?). Pass a data_collator that keeps one example per row."
                )
            for name, gradients in recording.gradients.items():
                for side, factor in zip(factors[name], factorize(gradients, self.config.factor_rank), strict=True):
                    side.append(self._stored(factor, name))
            losses.append(recording.losses)
            tokens.append(tokens_per_example(batch, len(rows)))
            self._count_targets(recording.targets, rows)
            bar.update(len(rows))
        stored = {name: (torch.cat(left), torch.cat(right)) for name, (left, right) in factors.items()}
        write_tensors(self._rows_path(shard), {"losses": torch.cat(losses), "num_tokens": torch.cat(tokens)})
        write_shard(self._factor_path(shard), stored)

    def _count_targets(self, targets: Tensor | None, rows: range) -> None:
        """Count the rows without a target. Where no row has one, something is wrong with the labels."""
        self._seen += len(rows)
        self._empty += 0 if targets is None else int((targets == 0).sum())
        if self._empty == self._seen and (self._seen >= _PATIENCE or rows.stop == self.rows.count):
            raise DatasetError(
                f"None of the {self._seen} rows up to row {rows.stop - 1} has a target: all their labels are -100 (or "
                "there is a single token). Check the collator and the truncation."
            )

    def _record_batch(self, recorder: GradientRecorder, batch: dict[str, Any], rows: range) -> Recording:
        try:
            return recorder.record(batch, rows)
        except IndexError as error:
            raise DatasetError(
                f"The model cannot take rows {rows.start} to {rows.stop - 1} ({error}): a row is longer than its "
                "positions, or a token is outside its vocabulary. Truncate the rows; use the model's own tokenizer."
            ) from error
        except (MemoryError, RuntimeError) as error:
            text = str(error).lower()
            if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
                raise RecordingError(
                    f"Out of memory at rows {rows.start} to {rows.stop - 1} with batch_size={self.batch_size}. The "
                    f"finished shards in {self.folder} are kept: build again with a smaller batch_size to go on."
                ) from error
            raise

    def _stored(self, factor: Tensor, name: str) -> Tensor:
        stored = factor.to("cpu", self.dtype)
        if not bool(torch.isfinite(stored).all()):
            raise RecordingError(
                f"A gradient of module '{name}' is too large for {self.config.dtype}: build with dtype='bfloat16'."
            )
        return stored

    def _fit_all(self) -> None:
        reader = ShardReader(LocalStore(self.folder), self._table, None, self.dtype, self.config.factor_rank)
        with progress(len(self.entries), "Fitting curvature", "modules") as bar:
            for number, entry in enumerate(self.entries):
                part = self._curvature_path(number)
                if not part.exists():
                    self._fit(reader, entry, part)
                bar.update()
        parts = [load_file(self._curvature_path(number)) for number in range(len(self.entries))]
        tensors = {
            f"{entry.name}.{name}": tensor
            for entry, part in zip(self.entries, parts, strict=True)
            for name, tensor in part.items()
            if name != "self_influence"
        }
        write_tensors(self.folder / CURVATURE, tensors)

    def _fit(self, reader: ShardReader, entry: ModuleEntry, part: Path) -> None:
        fitted = curvature_algebra.fit(
            lambda: reader.blocks(entry),
            count=self.rows.count,
            dim=entry.d1 * entry.d2,
            rank=self.config.curvature_rank,
            damping=self.config.damping,
        )
        influence = [curvature_algebra.self_influence(left, right, fitted) for left, right in reader.blocks(entry)]
        write_tensors(
            part,
            {
                "eigenvectors": fitted.eigenvectors,
                "eigenvalues": fitted.eigenvalues,
                "damping": torch.tensor(fitted.damping, dtype=torch.float64),
                "trace": torch.tensor(fitted.trace, dtype=torch.float64),
                "self_influence": torch.cat(influence),
            },
        )

    def _finish(self) -> None:
        """The example table with losses and self-influence, the tokenizer, and at last the manifest."""
        self_influence = torch.zeros(self.rows.count, dtype=torch.float64)
        for number in range(len(self.entries)):
            self_influence += load_file(self._curvature_path(number))["self_influence"].double()
        examples = []
        for shard, (start, stop) in enumerate(self.ranges):
            recorded = load_file(self._rows_path(shard))
            file = example_file(shard, len(self.ranges))
            columns = {
                "row": range(start, stop),
                "example_id": self.rows.example_ids(start, stop),
                "text": self.rows.texts(start, stop),
                "num_tokens": recorded["num_tokens"].tolist(),
                "loss": recorded["losses"].tolist(),
                "self_influence": self_influence[start:stop].tolist(),
            }
            write_examples(self.folder / file, columns)
            entry = file_entry(self.folder, file)
            examples.append(Shard(entry.file, entry.bytes, entry.sha256, start, stop - start))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(self.folder / TOKENIZER)
        tokenizer = sorted(path for path in (self.folder / TOKENIZER).rglob("*") if path.is_file())
        manifest = Manifest(
            config=self.config.to_dict(),
            objective=self.objective.name,
            model=self.identity,
            dataset=self.rows.source(),
            num_examples=self.rows.count,
            modules=self.entries,
            shards=self._table,
            examples=examples,
            curvature=file_entry(self.folder, CURVATURE),
            build=self.fingerprint,
            tokenizer=[file_entry(self.folder, path.relative_to(self.folder).as_posix()) for path in tokenizer],
        )
        write_text(self.folder / MANIFEST, manifest.to_json())

    @property
    def _table(self) -> list[FactorShard]:
        """The manifest's shard table, once all shards are recorded."""
        return [self._shards[shard] for shard in range(len(self.ranges))]

    def _factor_path(self, shard: int) -> Path:
        return self.folder / factor_file(shard, len(self.ranges))

    def _rows_path(self, shard: int) -> Path:
        return self.staging / f"rows-{shard + 1:05d}.safetensors"

    def _curvature_path(self, module: int) -> Path:
        return self.staging / f"curvature-{module + 1:05d}.safetensors"


def plan_build(
    model: Any,
    dataset: Any,
    folder: Path,
    *,
    config: InfluenceConfig | None,
    processing_class: Any,
    data_collator: Callable[[list[Any]], Any] | None,
    batch_size: int,
    objective: UserObjective | None,
    **shown: Any,
) -> IndexBuilder:
    """A build that is ready to run: everything that can be checked without a forward pass is.

    The arguments are those of `InfluenceIndex.build`; `shown` are the ones that decide what people see of a row.
    """
    check_folder(folder)
    model = unwrap(model)
    found = find_objective(model, objective)
    rows = TrainingRows(dataset, model, found, processing_class, data_collator, **shown)
    return IndexBuilder(model, rows, folder, config or InfluenceConfig(), found, processing_class, batch_size)


def check_folder(folder: Path) -> None:
    """A new index needs a folder that is absent, empty, an unfinished build or an index.

    Raises:
        [`~lorif_hf.errors.BuildFolderError`]: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise BuildFolderError(f"{folder} is a file; an index needs a folder.")
    ours = (folder / STAGING).exists() or (folder / MANIFEST).exists()
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise BuildFolderError(
            f"{folder} is not empty and holds neither an index nor an unfinished build of one. Choose another folder."
        )
