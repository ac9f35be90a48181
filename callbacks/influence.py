"""`InfluenceCallback`: an index at the end of a training."""

import logging
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.builder import IndexBuilder
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.plan import plan_build
from lorif_hf.building.way import Way
from lorif_hf.errors import BuildFolderError, DatasetError, RecordingError
from lorif_hf.hub.destination import Destination
from lorif_hf.progress import without_bars
from lorif_hf.recording.random_state import random_state_kept
from lorif_hf.recording.streamed_rows import StreamedRows, is_stream, numbered, trained_rows
from lorif_hf.storage.claim import INDEX_FOLDER
from lorif_hf.storage.layout import MANIFEST
from lorif_hf.tasks import Task, UserObjective

from .model_card import destination_of, link_cards, prepared
from .trackers import figures_of, report


logger = logging.getLogger(__name__)


class InfluenceCallback(TrainerCallback):
    """Records an influence index in a final pass when `trainer.train()` ends, at the final (or best) weights.

    Row i of the index is row i of the Trainer's `train_dataset`, whatever the sampler did; where that is packed, each
    document in it is a row, in the order in which they stand there. The index is then at `callback.index`. What can be
    wrong is found before the first step, and raised; what goes wrong after the training is logged, and kept as
    `callback.error`: `train()` returns all the same, and [`~InfluenceCallback.record`] goes on.

    Args:
        path (`str` or `os.PathLike`): folder of the index. It is checked before the training starts.
        trainer (`transformers.Trainer`, *optional*): the Trainer, whose `compute_loss` is what is trained. By default
            the one that calls this callback.
        config (`InfluenceConfig`, *optional*): by default `InfluenceConfig()`.
        batch_size (`int`, *optional*): examples per forward pass, or packed rows; by default
            `per_device_train_batch_size`.
        max_tokens_per_batch, max_memory, check (*optional*): as in [`InfluenceIndex.build`].
        auto_find_batch_size (`bool`, *optional*): by default that of the `TrainingArguments`.
        objective (`Callable`, [`~lorif_hf.tasks.Task`] or `str`, *optional*): `(model, batch) -> (B,)` per-example
            losses, or a task or its name; `"trainer"`: the Trainer's `compute_loss`, one row at a time; `"model"`: the
            model's own loss, one row at a time. By default the task of the model's class where the check shows that it
            is what is trained, else `"trainer"`.
        data_collator (`Callable`, *optional*): by default the Trainer's own.
        examples (*optional*): the training rows with the columns that the Trainer removes (texts, ids), in the same
            order, for people to read; which columns are shown, [`InfluenceIndex.build`] says. Of packed rows, their
            documents. By default the Trainer's `train_dataset`.
        store_text (*optional*): as in [`InfluenceIndex.build`].
        examples_seen (`int`, *optional*): of a stream, how many of its first rows are recorded. By default those that
            the training has seen: its steps times rows a step, or the whole stream where it was read to its end.
        overwrite (`bool`, *optional*, defaults to `False`): replace an index that is in `path`, once the new one is
            whole, as in [`InfluenceIndex.build`].
        push_to_hub (`bool`, *optional*, defaults to `False`): push the index when it is whole; its shards are uploaded
            while it is recorded. The cards of index and model then name one another: what the Trainer pushes has the
            section "This model's training data can be queried" in its card.
        repo_id, private, token (*optional*): as in [`InfluenceIndex.push_to_hub`]; by default what the
            `TrainingArguments` say: `hub_model_id` with "-influence" (without one, the folder's name),
            `hub_private_repo` and `hub_token`.
        raise_errors (`bool`, *optional*, defaults to `False`): raise what goes wrong after the training too.

    Attributes:
        index (`InfluenceIndex` or `None`): the index, once it is recorded.
        error (`BaseException` or `None`): what went wrong after the training.

    The trackers of `report_to` are told `influence/rows`, `influence/bytes_per_example`, `influence/seconds` and
    `influence/coverage`, where their run is still open then (not MLflow's, Trackio's, Neptune's, ClearML's and
    DVCLive's). `disable_tqdm` hides the bars of the pass too.

    Example:

    ```python
    >>> trainer = Trainer(model=model, args=args, train_dataset=ds, callbacks=[InfluenceCallback("my-index")])
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trainer: Any = None,
        config: InfluenceConfig | None = None,
        batch_size: int | None = None,
        max_tokens_per_batch: int | None = None,
        auto_find_batch_size: bool | None = None,
        max_memory: int | str | None = None,
        check: bool = True,
        objective: UserObjective | Task | Literal["model", "trainer"] | str | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        examples: Any = None,
        store_text: bool | int = True,
        examples_seen: int | None = None,
        overwrite: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        raise_errors: bool = False,
    ):
        self.path = Path(path)
        self.trainer = self._given_trainer = trainer
        self.config = config
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.auto_find_batch_size = auto_find_batch_size
        self.max_memory, self.check = max_memory, check
        self.data_collator = data_collator
        self.overwrite, self.push_to_hub = overwrite, push_to_hub
        self._repo = repo_id, private, token
        self.destination: Destination | None = None
        self.objective = objective
        self.examples, self.store_text = examples, store_text
        self.examples_seen = examples_seen
        self.raise_errors = raise_errors
        self.index: InfluenceIndex | None = None
        self.error: BaseException | None = None
        self._way: Way | None = None
        self._trained: frozenset[str] = frozenset()  # names of the parameters that had `requires_grad` at the start
        self._ended: tuple[TrainingArguments, TrainerState, dict[str, Any]] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse now what could only fail after hours of training."""
        INDEX_FOLDER.check(self.path)
        if (self.path / MANIFEST).exists() and not self.overwrite:
            raise BuildFolderError(
                f"{self.path} already holds an index. Choose another folder, or pass overwrite=True to replace it."
            )
        if args.world_size > 1:
            raise RecordingError(
                f"The final pass runs on one process, this training has {args.world_size}. Train without the callback "
                "and call InfluenceIndex.build(model, dataset, path) on one process afterwards."
            )
        self.trainer = self._given_trainer or _calling_trainer(self)
        loader = kwargs["train_dataloader"]
        with (
            without_bars(bool(args.disable_tqdm)),
            random_state_kept(loader.collate_fn, loader.dataset, self.data_collator),
        ):
            self._trained = frozenset()
            builder = self._planned(self.path, args, kwargs, state.max_steps)
            self._way, self._trained = builder.prepare(), frozenset(builder.selection.trained)
        if self.push_to_hub:
            self.destination = prepared(destination_of(self.trainer, args, self.path, *self._repo))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the index. The model is left as it was."""
        self._ended = (args, state, kwargs)
        self.error = None
        try:
            self.record()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # what panics in Rust is no Exception
            self.error = error
            if self.raise_errors:
                raise
            logger.exception(
                "The training is over and its model is whole, but the influence index in %s is not finished. What was "
                "recorded is kept. To go on: callback.record() in this process; or save the model and call "
                "InfluenceIndex.build(model, trainer.train_dataset, %r, ...) with the same arguments.",
                self.path,
                str(self.path),
            )

    def record(self) -> InfluenceIndex:
        """Record the index of the training that ended, or go on where that stopped.

        Raises:
            [`~lorif_hf.errors.RecordingError`]: no training has ended yet.

        Example:

        ```python
        >>> trainer.train()
        >>> if callback.error is not None:  # a full disk, say: make room
        ...     index = callback.record()
        ```
        """
        if self._ended is None:
            raise RecordingError("No training with this callback has ended yet: there is nothing to record.")
        args, state, kwargs = self._ended
        loader, began = kwargs["train_dataloader"], time.monotonic()
        with (
            without_bars(bool(args.disable_tqdm)),
            random_state_kept(loader.collate_fn, loader.dataset, self.data_collator),
        ):
            try:
                self.index = self._recorded(self.path, args, kwargs, state.global_step)
            except BuildFolderError as error:
                # An unfinished build of an earlier training is in the way: this one's index must not be lost for it.
                beside = self.path.with_name(f"{self.path.name}-{state.global_step}-{uuid.uuid4().hex[:8]}")
                logger.warning("%s The index goes to %s.", error, beside)
                self.path = beside
                self.index = self._recorded(beside, args, kwargs, state.global_step)
        self.error = self._ended = None
        if self.trainer is not None:
            report(self.trainer, figures_of(self.index, time.monotonic() - began))
            if self.destination is not None:
                link_cards(self.trainer, self.index, self.destination.repo_id, self.destination.token)
        return self.index

    def _recorded(self, folder: Path, args: TrainingArguments, kwargs: dict[str, Any], steps: int) -> InfluenceIndex:
        builder = self._planned(folder, args, kwargs, steps, ended=True)
        builder.prepare(self._way)
        return InfluenceIndex.from_builder(builder, self.destination)

    def _planned(
        self, folder: Path, args: TrainingArguments, kwargs: dict[str, Any], steps: int, ended: bool = False
    ) -> IndexBuilder:
        """The build after so many steps, with what the Trainer knows and it needs."""
        loader = kwargs["train_dataloader"]
        dataset = self._rows(loader, args, steps)
        auto = args.auto_find_batch_size if self.auto_find_batch_size is None else self.auto_find_batch_size
        batch_size = self.batch_size or args.per_device_train_batch_size
        return plan_build(
            kwargs["model"],
            dataset,
            folder,
            self.config,
            BuildOptions(batch_size, self.max_tokens_per_batch, auto, self.max_memory, self.check, self.overwrite),
            objective=self.objective,
            processing_class=kwargs.get("processing_class"),
            data_collator=self.data_collator or loader.collate_fn,
            examples=self._examples(dataset),
            store_text=self.store_text,
            trainer=self.trainer,
            trained=self._trained,
            settle=ended,
        )

    def _rows(self, loader: Any, args: TrainingArguments, steps: int) -> Any:
        """The rows that so many steps see: all, or those of a stream that the loader has read by then."""
        if not is_stream(loader.dataset):
            return numbered(loader.dataset, self.examples_seen)
        if loader.batch_size is None:
            raise DatasetError("The loader has no batch_size: what its stream yields are batches, not rows.")
        if loader.num_workers > 1 and not args.dataloader_in_order:
            raise DatasetError(
                "With dataloader_in_order=False the rows of a stream come in an order that cannot be had twice: leave "
                "it at True."
            )
        batches = steps * args.gradient_accumulation_steps
        return trained_rows(loader.dataset, loader.batch_size, batches, loader.num_workers, self.examples_seen)

    def _examples(self, rows: Any) -> Any:
        """What people are shown: what the user gave, else the Trainer's rows before it took columns away."""
        if self.examples is not None:
            return self.examples
        if isinstance(rows, StreamedRows):  # from whose items nothing was taken
            return rows
        whole = getattr(self.trainer, "train_dataset", None)
        try:
            return whole if whole is not None and len(whole) == len(rows) else None
        except TypeError:
            return None


def _calling_trainer(callback: TrainerCallback) -> Any:
    """The Trainer whose event this is. Events do not carry it; it stands on the stack that calls them.

    Without it, a loss that only the Trainer knows (an overridden `compute_loss`, label smoothing) would be missed.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and callback in owner.callback_handler.callbacks:
            return owner
        frame = frame.f_back
    return None
