"""Building an index: one recording pass over the rows, then the curvature, then the manifest that makes it whole.

A killed build goes on where it stopped: shards and fitted layers appear whole, under their final names or in a staging
folder, and the fingerprint of config, model and rows tells whether they are this build's.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor, nn

from .algebra.projection import TwoSidedProjection
from .algebra.whitening import SecondMoments, whiteners
from .config import InfluenceConfig
from .dataset import TrainingRows, code_identity, tokens_per_example
from .encoding import Encoder, draw_projection, module_entry, stored_entries
from .errors import BuildFolderError, ConfigError, DatasetError, RecordingError
from .fitting import fit_curvature
from .norms import shard_entry
from .progress import progress
from .recording.identity import identify
from .recording.modules import TrackedModule, tracked_modules, unwrap
from .recording.objectives import MarginObjective, Objective, UserObjective, find_objective
from .recording.recorder import GradientRecorder, Recording
from .storage.examples import write_examples
from .storage.files import file_entry, is_intact, write_tensors, write_text
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
        self.codec = config.codec()
        self.staging = folder / STAGING
        self.modules = tracked_modules(model, config.target_modules, config.exclude_modules)
        self.projections: dict[str, TwoSidedProjection] = {}
        self.entries = [self._module_entry(tracked) for tracked in self.modules]
        self.stored = stored_entries(config, self.entries)
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
            self._whiten()
            self._record_all()
            self._finish(self._fit_all())
        shutil.rmtree(self.staging)

    def _module_entry(self, tracked: TrackedModule) -> ModuleEntry:
        entry = module_entry(tracked, self.config)
        self.projections[entry.name], sha256 = draw_projection(entry, self.config)
        return replace(entry, projection_sha256=sha256)

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

    def _whiten(self) -> None:
        """Estimate the second moments on a sample of rows: what is stored is whitened, so they come first."""
        if self.config.whitening == "none" or is_intact(self._whitening_path):
            return
        moments = {entry.name: SecondMoments.zeros(entry.d1, entry.d2) for entry in self.entries}
        recorder = GradientRecorder(self.model, self.modules, self.projections, self.objective, moments)
        count = min(self.config.whitening_samples, self.rows.count)
        with recorder, progress(count, "Estimating second moments", "examples") as bar:
            for rows, batch in self.rows.sample(count, self.batch_size):
                self._record_batch(recorder, batch, rows)
                bar.update(len(rows))
        tensors = {}
        for name, moment in moments.items():
            try:
                sides = whiteners(moment, damping=self.config.whitening_damping, scale=self.rows.count / count)
            except ValueError as error:
                raise RecordingError(
                    f"Module '{name}' cannot be whitened ({error}): its inputs or gradients are too large. Leave it "
                    "out with exclude_modules, or set whitening='none'."
                ) from None
            tensors[f"{name}.in_whitener"], tensors[f"{name}.out_whitener"] = sides
        write_tensors(self._whitening_path, tensors)

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
        encoder = Encoder(self.config, self.entries, self._whiteners())
        with recorder, progress(self.rows.count, "Recording", "examples", initial=done) as bar:
            for shard in missing:
                self._record_shard(recorder, encoder, shard, bar)
                self._finished(shard)
        if self._empty:
            logger.warning("%d rows have no target (all labels are -100); their scores are zero.", self._empty)

    def _recorded(self, shard: int) -> bool:
        """Whether a shard is there, whole and undamaged."""
        return is_intact(self._factor_path(shard)) and is_intact(self._rows_path(shard))

    def _finished(self, shard: int) -> None:
        start, stop = self.ranges[shard]
        file = factor_file(shard, len(self.ranges))
        self._shards[shard] = shard_entry(self.folder, file, start, stop - start, self.stored, self.config)
        self.on_shard(self._shards[shard])

    def _record_shard(self, recorder: GradientRecorder, encoder: Encoder, shard: int, bar: Any) -> None:
        start, stop = self.ranges[shard]
        layouts = {entry.name: self.codec.layout(entry.d1, entry.d2) for entry in self.stored}
        parts: dict[str, dict[str, list[Tensor]]] = {name: {part: [] for part in layouts[name]} for name in layouts}
        columns: dict[str, list[Tensor]] = {"losses": [], "num_tokens": [], "weights": [], "self_influence": []}
        for rows, batch in self.rows.batches(start, stop, self.batch_size):
            recording = self._record_batch(recorder, batch, rows)
            if len(recording.losses) != len(rows):
                raise DatasetError(
                    f"The collator made {len(recording.losses)} examples of rows {rows.start} to {rows.stop - 1}: it "
                    "packs or flattens them (padding_free?). Pass a data_collator that keeps one example per row."
                )
            influence = torch.zeros(len(rows), dtype=torch.float64)
            for name, gradients in encoder.encode(recording.gradients).items():
                for part, tensor in self.codec.encode(gradients).items():
                    parts[name][part].append(self._finite(tensor, name))
                influence += gradients.flatten(1).square().sum(dim=1).double().cpu()
            columns["self_influence"].append(influence)
            columns["losses"].append(recording.losses)
            columns["num_tokens"].append(tokens_per_example(batch, len(rows)))
            columns["weights"].append(torch.ones(len(rows)) if recording.weights is None else recording.weights)
            self._count_targets(recording.targets, rows)
            bar.update(len(rows))
        table = {name: torch.cat(column) for name, column in columns.items()}
        write_tensors(self._rows_path(shard), table)
        stored = {name: {part: torch.cat(one) for part, one in some.items()} for name, some in parts.items()}
        write_shard(self._factor_path(shard), stored, table["weights"] if self.config.output == "margin" else None)

    def _count_targets(self, targets: Tensor | None, rows: range) -> None:
        """Count the rows without a target. Where no row has one, something is wrong with the labels."""
        self._seen += len(rows)
        self._empty += 0 if targets is None else int((targets == 0).sum())
        if self._empty == self._seen and (self._seen >= _PATIENCE or rows.stop == self.rows.count):
            raise DatasetError(
                f"None of the {self._seen} rows up to row {rows.stop - 1} has a target: all their labels are -100 (or "
                "there is a single token). Check the collator and the truncation."
            )

    def _record_batch(self, recorder: GradientRecorder, batch: dict[str, Any], rows: Sequence[int]) -> Recording:
        try:
            return recorder.record(batch, rows)
        except IndexError as error:
            raise DatasetError(
                f"The model cannot take rows {rows[0]} to {rows[-1]} ({error}): a row is longer than its "
                "positions, or a token is outside its vocabulary. Truncate the rows; use the model's own tokenizer."
            ) from error
        except (MemoryError, RuntimeError) as error:
            text = str(error).lower()
            if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
                raise RecordingError(
                    f"Out of memory at rows {rows[0]} to {rows[-1]} with batch_size={self.batch_size}. The "
                    f"finished shards in {self.folder} are kept: build again with a smaller batch_size to go on."
                ) from error
            raise

    def _finite(self, part: Tensor, name: str) -> Tensor:
        if not bool(torch.isfinite(part).all()):
            raise RecordingError(
                f"A gradient of module '{name}' is too large for {self.config.dtype}: build with dtype='bfloat16'."
            )
        return part

    def _whiteners(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        if self.config.whitening == "none":
            return None
        tensors = load_file(self._whitening_path)
        return {
            entry.name: (tensors[f"{entry.name}.in_whitener"], tensors[f"{entry.name}.out_whitener"])
            for entry in self.entries
        }

    def _fit_all(self) -> Tensor:
        """Write the curvature file. Returns each example's self-influence, float64 (N,).

        It is that of the whole gradients where their metric is known while they are recorded, else of what is stored.
        """
        tensors = load_file(self._whitening_path) if self.config.whitening != "none" else {}
        influence = torch.cat([table["self_influence"] for table in self._row_tables()])
        if self.config.curvature == "low-rank":
            reader = ShardReader(LocalStore(self.folder), self._table, None, self.codec.layout)
            eigenpairs, influence = fit_curvature(
                reader, self.stored, self.rows.count, self.config, self._curvature_path
            )
            tensors |= eigenpairs
        write_tensors(self.folder / CURVATURE, tensors)
        return influence * torch.cat([table["weights"] for table in self._row_tables()])

    def _row_tables(self) -> list[dict[str, Tensor]]:
        """What was recorded of each row, shard by shard: losses, num_tokens, weights, self_influence; (n,) each."""
        return [load_file(self._rows_path(shard)) for shard in range(len(self.ranges))]

    def _finish(self, self_influence: Tensor) -> None:
        """The example table with losses and self-influence, the tokenizer, and at last the manifest."""
        examples = []
        tables = self._row_tables()
        for shard, (start, stop) in enumerate(self.ranges):
            recorded = tables[shard]
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

    @property
    def _whitening_path(self) -> Path:
        return self.staging / "whitening.safetensors"

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
    model, config = unwrap(model), config or InfluenceConfig()
    found = find_objective(model, objective)
    rows = TrainingRows(dataset, model, found, processing_class, data_collator, **shown)
    measured = MarginObjective(found) if config.output == "margin" else found
    return IndexBuilder(model, rows, folder, config, measured, processing_class, batch_size)


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
