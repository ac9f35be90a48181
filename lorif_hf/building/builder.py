"""Building an index: one recording pass over the rows, then the curvature, then the manifest that makes it whole.

A killed build goes on where it stopped: shards and fitted layers appear whole, under their final names or in a staging
folder, and the fingerprint of config, model and rows tells whether they are this build's.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..algebra.projection import TwoSidedProjection
from ..algebra.statistic import Statistic
from ..codecs import codec_of
from ..config import InfluenceConfig
from ..curvature import curvature_of
from ..curvature.encoding import Encoder, draw_projection, module_entry, sharing_inputs, stored_entries
from ..errors import BuildFolderError, RecordingCheckError
from ..layers.modules import TrackedModule
from ..layers.selection import Selection
from ..progress import progress
from ..recording.identity import identify
from ..recording.recorder import GradientRecorder, without_gradient
from ..recording.rows import TrainingRows, task_code
from ..recording.stored_weights import execution_device
from ..registry import outside_module
from ..storage.claim import INDEX_FOLDER
from ..storage.files import file_entry, header_sha256, is_intact, write_tensors, write_text
from ..storage.layout import (
    CURVATURE,
    MANIFEST,
    STAGING,
    TOKENIZER,
    FactorShard,
    Manifest,
    ModuleEntry,
    factor_file,
    read_manifest,
)
from ..storage.shards import ShardReader, write_shard
from ..storage.store import LocalStore
from ..storage.tokenizer import save_processing_class
from ..tasks.objectives import OUTPUTS
from .dry_run import check_disk, check_processing_class, check_room, tell_coverage
from .example_tables import ACTIVE, silent_layers, text_bytes, write_example_tables
from .first_pass import Gathering
from .fitting import check_memory, fit_curvature
from .layer_groups import layer_groups, memory_for_layers
from .options import BuildOptions
from .owned_columns import OwnedColumns
from .recording_pass import RecordingPass, ShardContents
from .sizes import sizes_of
from .telling_rows import no_target
from .way import Choice, Way, WayFinder, unchecked_way


logger = logging.getLogger(__name__)

_PATIENCE = 1000  # first rows, none with a target, before the pass is called off

_ANOTHER = "another model, dataset or config. Choose another folder or delete this one."

OnShard = Callable[[FactorShard], None]
"""Told of every finished factor file, also of those found finished."""


class IndexBuilder:
    """Builds an index in a folder.

    Args:
        model (`nn.Module`): the unwrapped model.
        rows (`TrainingRows`): the training set, and the task.
        folder (`Path`): where the index goes; empty, absent, or holding this very build.
        config (`InfluenceConfig`): every choice that shapes the index.
        processing_class: the tokenizer that goes into the index, if any.
        options (`BuildOptions`): how it runs.
        choice (`Choice`): what may be recorded, and what was trained.
        trained (`Container[str]`, *optional*): parameters that were trained, whatever `requires_grad` says by now.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: TrainingRows,
        folder: Path,
        config: InfluenceConfig,
        processing_class: Any,
        options: BuildOptions,
        choice: Choice,
        trained: Container[str] = (),
    ):
        self.model, self.rows, self.folder, self.config = model, rows, folder, config
        self.processing_class, self.options, self.choice = processing_class, options, choice
        self.codec, self.curvature = codec_of(config), curvature_of(config)
        self.staging = folder / STAGING
        self.selection = Selection(model, config.target_modules, config.exclude_modules, trained)
        self.projections: dict[str, TwoSidedProjection] = {}
        self._every_entry = [self._module_entry(tracked) for tracked in self.selection.modules]
        self._set_way(unchecked_way(choice, rows))
        starts = range(0, rows.count, config.shard_size)
        self.ranges = [(start, min(start + config.shard_size, rows.count)) for start in starts]
        self._prepared = False
        self._shards: dict[int, FactorShard] = {}
        self._seen = self._empty = 0
        # Too little memory shows before the pass.
        check_memory(self.curvature, self.codec, self.stored, rows.count, options.memory)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's identity, as the manifest has it."""
        return identify(self.model, self.modules).to_dict()

    @cached_property
    def owned(self) -> OwnedColumns:
        return OwnedColumns(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over everything that the index depends on but the batch size, which changes it by rounding only."""
        identity = {
            "config": self.config.to_dict(),
            "model": self.identity,
            "modules": [(e.name, e.projection_sha256, e.followed, e.input_of) for e in self.entries],
            "objective": [self.task.name, task_code(self.task), self.way.alone],
            "rows": self.rows.fingerprint(),
            "owned": self.owned.kinds,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _set_way(self, way: Way) -> None:
        """Record in this way from now on."""
        self.way = way
        self.task = self.rows.task = way.task
        self.objective = OUTPUTS[self.config.output](way.task)
        self.passing = RecordingPass(self.rows, self.options, way.alone)
        self.modules = way.of(self.selection.modules)
        kept = {tracked.name: tracked.followed for tracked in self.modules}
        self.entries = [replace(e, followed=kept[e.name]) for e in self._every_entry if e.name in kept]
        if self.curvature.first_pass is not None:
            self.entries = [self._drawn(e) if e.input_of else e for e in sharing_inputs(self.entries, way.shared)]
        self.stored = stored_entries(self.config, self.entries)

    def prepare(self, way: Way | None = None) -> Way:
        """Everything that can go wrong before the first row is recorded, does so here; cheap the second time.

        Args:
            way (`Way`, *optional*): how rows are recorded, as an earlier check of these rows had it. Only what depends
                on the weights is looked at again then.

        Returns:
            `Way`: how they are recorded.

        Raises:
            [`~lorif_hf.errors.LorifError`]: a typed one for whatever is wrong.
        """
        if not self._prepared:
            INDEX_FOLDER.check(self.folder)
            INDEX_FOLDER.check_free(self.folder)
            right = self._right_way(way) if self.options.check else way
            if right is not None:
                self._set_way(right)
            if way is None:
                self.rows.check(self.way.alone)
                check_processing_class(self.processing_class)
                sizes = sizes_of(self.config, self.entries, self.rows.count, self.options.memory)
                check_room(sizes, self.options.memory, self.model)
                check_disk(self.folder, sizes, text_bytes(self.rows))
                tell_coverage(self.selection.coverage(self.way.dropped))
                _ = self.identity
            self._prepared = True
        return self.way

    def _right_way(self, before: Way | None) -> Way:
        known = self.model, self.rows, self.selection.modules, self.projections, self.config
        try:
            return WayFinder(*known).find(self.choice, before)
        except RecordingCheckError:
            raise
        except Exception:
            if before is None:
                raise
            return before  # a row that fails by now does not keep the others from being recorded

    def run(self, on_shard: OnShard = lambda shard: None) -> None:
        """Build what is missing. Returns at once where the folder holds this build's finished index."""
        self.prepare()
        if (self.folder / MANIFEST).exists():
            built = read_manifest(self.folder).build
            if built != self.fingerprint:
                raise BuildFolderError(f"{self.folder} holds an index of {_ANOTHER}")
            shutil.rmtree(self.staging, ignore_errors=True)
            return

        def another(plan: dict[str, Any]) -> str | None:
            return None if plan["build"] == self.fingerprint else f"an unfinished build of {_ANOTHER}"

        with INDEX_FOLDER.claimed(self.folder, {"build": self.fingerprint}, another):
            self.gather()
            self.record(on_shard)
            self._finish(self._fit_all())

    def _module_entry(self, tracked: TrackedModule) -> ModuleEntry:
        return self._drawn(module_entry(tracked, self.config))

    def _drawn(self, entry: ModuleEntry) -> ModuleEntry:
        self.projections[entry.name], sha256 = draw_projection(entry, self.config)
        return replace(entry, projection_sha256=sha256)

    def gather(self) -> None:
        """The curvature's first pass, over a sample of rows: what must be known before anything is stored."""
        if self._gathering is not None:
            self._gathering.run(self.rows, self.passing, self._without_gradients, self._room)

    @property
    def _gathering(self) -> Gathering | None:
        first_pass = self.curvature.first_pass
        return None if first_pass is None else Gathering(first_pass, self.entries, self.staging)

    @property
    def _room(self) -> int | None:
        """Bytes that what is kept of all layers at once may take."""
        return memory_for_layers(self.options.memory, execution_device(self.model))

    def _without_gradients(self, statistics: Mapping[str, Statistic]) -> GradientRecorder:
        return self._recorder(statistics, dict.fromkeys(statistics, without_gradient), names=statistics)

    def record(self, on_shard: OnShard) -> None:
        """Record the shards that are missing; each is written while the next is recorded."""
        missing = [shard for shard in range(len(self.ranges)) if not self._recorded(shard)]
        for shard in range(len(self.ranges)):
            if shard not in missing:
                self._finished(shard, on_shard)
        done = self.rows.count - sum(self.ranges[shard][1] - self.ranges[shard][0] for shard in missing)
        if not missing:
            return
        if done:
            logger.info("Going on with %d of %d rows already recorded in %s.", done, self.rows.count, self.folder)
        writing: Future[None] | None = None
        with (
            progress(self.rows.count, "Recording", "examples", initial=done) as bar,
            ThreadPoolExecutor(1, thread_name_prefix="lorif-write") as writer,
        ):
            for shard, contents in self._recorded_shards(missing, bar):
                if writing is not None:
                    writing.result()  # a shard in the making and one being written: no more are held
                writing = writer.submit(self._write_shard, shard, contents, on_shard)
            if writing is not None:
                writing.result()
        if self._empty:
            logger.warning("%d rows have no target (all labels are -100); their scores are zero.", self._empty)

    def _recording(self, entries: Sequence[ModuleEntry]) -> tuple[GradientRecorder, Encoder]:
        """What records some of the layers, and makes what is stored of it."""
        gathering, names = self._gathering, {entry.name for entry in entries}
        first = gathering.tensors() if gathering is not None else {}
        encoder = Encoder(self.config, entries, {name: kept for name, kept in first.items() if name in names})
        reductions = encoder.reductions()
        return self._recorder(reductions=reductions, scales=encoder.in_scales(), names=names), encoder

    def _recorder(
        self, statistics: Any = None, reductions: Any = None, scales: Any = None, names: Container[str] = ()
    ) -> GradientRecorder:
        return GradientRecorder(
            self.model,
            [tracked for tracked in self.modules if tracked.name in names],
            self.projections,
            self.objective,
            statistics,
            reductions,
            self.way.unreached,
            self.way.alone,
            scales,
        )

    def _recorded(self, shard: int) -> bool:
        """Whether a shard is there, whole and undamaged."""
        return is_intact(self.folder / factor_file(shard)) and is_intact(self._rows_path(shard))

    def _finished(self, shard: int, on_shard: OnShard) -> None:
        start, stop = self.ranges[shard]
        entry = file_entry(self.folder, factor_file(shard))
        header = header_sha256(self.folder / entry.file)
        self._shards[shard] = FactorShard(entry.file, entry.bytes, entry.sha256, start, stop - start, header)
        on_shard(self._shards[shard])

    def _recorded_shards(self, missing: Sequence[int], bar: Any) -> Iterator[tuple[int, ShardContents]]:
        """Shards, each of one pass over its rows for each group of layers whose whiteners fit into memory."""
        first_pass = self.curvature.first_pass
        limit = None if first_pass is None or self.config.joins_layers else self._room
        groups = layer_groups(self.entries, lambda e: first_pass.cost(e).memory if first_pass else 0, limit)
        recordings = [self._recording(groups[0])] if len(groups) == 1 else []
        for shard in missing:
            start, stop = self.ranges[shard]
            contents = ShardContents(start, stop, self.codec, self.stored)
            for number, group in enumerate(groups):
                recorder, encoder = recordings[0] if recordings else self._recording(group)
                with recorder:
                    take = partial(contents.put, encoder=encoder)
                    for rows, _, recording in self.passing.run(recorder, range(start, stop), take):
                        if number == 0:
                            self._count_targets(recording.targets, len(rows))
                            bar.update(len(rows))
            yield shard, contents

    def _write_shard(self, shard: int, contents: ShardContents, on_shard: OnShard) -> None:
        active = torch.tensor([contents.active[entry.name] for entry in self.stored], dtype=torch.uint8)
        write_tensors(self._rows_path(shard), {**contents.table, ACTIVE: active})
        weights = contents.table["weights"] if self.config.weighted else None
        write_shard(self.folder / factor_file(shard), contents.parts, weights)
        self._finished(shard, on_shard)

    def _count_targets(self, targets: Tensor | None, count: int) -> None:
        """Count the rows without a target. Where no row has one, something is wrong with the labels."""
        self._seen += count
        self._empty += 0 if targets is None else int((targets == 0).sum())
        if self._empty == self._seen and (self._seen >= _PATIENCE or self._seen == self.rows.count):
            raise no_target(self._seen)

    def _fit_all(self) -> Tensor:
        """Write the curvature file. Returns each example's self-influence, float64 (N,).

        It is that of the whole gradients where their metric is known while they are recorded, else of what is stored.
        """
        gathering = self._gathering
        reader = ShardReader(LocalStore(self.folder), self._table, None, self.codec.layout)
        tensors, influence = fit_curvature(
            self.curvature,
            self.codec,
            reader,
            self.stored,
            {} if gathering is None else gathering.tensors(),
            self.rows.count,
            self._curvature_path,
            self.options.memory,
        )
        if gathering is not None:
            tensors = gathering.stored() | tensors
        write_tensors(self.folder / CURVATURE, tensors)
        tables = self._row_tables()
        if influence is None:
            influence = torch.cat([table["self_influence"] for table in tables])
        return influence * torch.cat([table["weights"] for table in tables])

    def _row_tables(self) -> list[dict[str, Tensor]]:
        """What was recorded of each row, shard by shard: losses, num_tokens, weights, self_influence; (n,) each."""
        return [load_file(self._rows_path(shard)) for shard in range(len(self.ranges))]

    def _finish(self, self_influence: Tensor) -> None:
        """The example table with losses and self-influence, the tokenizer, and at last the manifest."""
        tables = self._row_tables()
        silent = {} if self.config.projection_dim is not None else silent_layers(tables, self.stored)
        kept = [tracked for tracked in self.modules if tracked.name not in silent]
        examples = write_example_tables(self.folder, self.rows, self.ranges, tables, self_influence, self.owned)
        if self.processing_class is not None:
            save_processing_class(self.processing_class, self.folder / TOKENIZER)
        tokenizer = sorted(path for path in (self.folder / TOKENIZER).rglob("*") if path.is_file())
        manifest = Manifest(
            config=self.config.to_dict(),
            objective=self.task.name,
            alone=self.way.alone,
            coverage=self.selection.coverage({**self.way.dropped, **silent}),
            model=identify(self.model, kept).to_dict() if silent else self.identity,
            dataset=self.rows.source(),
            num_examples=self.rows.count,
            modules=[entry for entry in self.entries if entry.name not in silent],
            shards=self._table,
            examples=examples,
            curvature=file_entry(self.folder, CURVATURE),
            build=self.fingerprint,
            extensions=self._extensions(),
            tokenizer=[file_entry(self.folder, path.relative_to(self.folder).as_posix()) for path in tokenizer],
        )
        write_text(self.folder / MANIFEST, manifest.to_json())

    def _extensions(self) -> dict[str, str]:
        """The kinds that are none of this library's, and the modules that define them."""
        kinds: list[Any] = [*(tracked.kind for tracked in self.modules), self.task, self.curvature, self.codec]
        modules = {kind.name: outside_module(kind) for kind in kinds}
        return {name: module for name, module in sorted(modules.items()) if module is not None}

    @property
    def _table(self) -> list[FactorShard]:
        """The manifest's shard table, once all shards are recorded."""
        return [self._shards[shard] for shard in range(len(self.ranges))]

    def _rows_path(self, shard: int) -> Path:
        return self.staging / f"rows-{shard + 1:05d}.safetensors"

    def _curvature_path(self, module: int) -> Path:
        return self.staging / f"curvature-{module + 1:05d}.safetensors"
