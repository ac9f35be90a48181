"""`InfluenceCallback`: an index at the end of a training."""

import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.builder import IndexBuilder, plan_build
from lorif_hf.building.options import BuildOptions
from lorif_hf.errors import BuildFolderError, DatasetError, RecordingError
from lorif_hf.hub.destination import Destination
from lorif_hf.hub.publish import prepare_repo
from lorif_hf.storage.claim import INDEX_FOLDER
from lorif_hf.storage.layout import MANIFEST
from lorif_hf.tasks import Task, UserObjective


logger = logging.getLogger(__name__)


class InfluenceCallback(TrainerCallback):
    """Records an influence index in a final pass when `trainer.train()` ends, at the final (or best) weights.

    Row i of the index is row i of the Trainer's `train_dataset`, whatever the sampler did. The index is then at
    `callback.index`.

    Args:
        path (`str` or `os.PathLike`): folder of the index. It is checked before the training starts.
        config (`InfluenceConfig`, *optional*): by default `InfluenceConfig()`.
        batch_size (`int`, *optional*): examples per forward pass; by default `per_device_train_batch_size`.
        max_tokens_per_batch, max_memory (*optional*): as in [`InfluenceIndex.build`].
        auto_find_batch_size (`bool`, *optional*): by default that of the `TrainingArguments`.
        objective (`Callable`, *optional*): `(model, batch) -> (B,)` per-example losses; by default that of the task.
        data_collator (`Callable`, *optional*): by default the Trainer's own.
        examples (*optional*): the training rows with the columns that the Trainer removes (texts, ids), in the same
            order, for people to read; which columns are shown, [`InfluenceIndex.build`] says.
        store_text (*optional*): as in [`InfluenceIndex.build`].
        push_to_hub (`bool`, *optional*, defaults to `False`): push the index when it is whole; its shards are uploaded
            while it is recorded.
        repo_id, private, token (*optional*): as in [`InfluenceIndex.push_to_hub`]; `repo_id` is by default the
            folder's name.

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
        config: InfluenceConfig | None = None,
        batch_size: int | None = None,
        max_tokens_per_batch: int | None = None,
        auto_find_batch_size: bool | None = None,
        max_memory: int | str | None = None,
        objective: UserObjective | Task | str | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        examples: Any = None,
        store_text: bool | int = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
    ):
        self.path = Path(path)
        self.config = config
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.auto_find_batch_size = auto_find_batch_size
        self.max_memory = max_memory
        self.data_collator = data_collator
        self.destination = Destination(repo_id or self.path.name, private, token) if push_to_hub else None
        self.objective = objective
        self.examples, self.store_text = examples, store_text
        self.index: InfluenceIndex | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse now what could only fail after hours of training."""
        INDEX_FOLDER.check(self.path)
        if (self.path / MANIFEST).exists():
            raise BuildFolderError(f"{self.path} already holds an index. Choose another folder or delete this one.")
        dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if not hasattr(dataset, "__len__"):
            raise DatasetError(
                f"The train_dataset is a {type(dataset).__name__} without a length, so its rows have no number: an "
                "influence index needs a map-style dataset."
            )
        if args.world_size > 1:
            raise RecordingError(
                f"The final pass runs on one process, this training has {args.world_size}. Train without the callback "
                "and call InfluenceIndex.build(model, dataset, path) on one process afterwards."
            )
        self._planned(self.path, args, kwargs).check_first_batch()
        if self.destination is not None:
            prepare_repo(self.destination)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the index. The model is left as it was."""
        try:
            builder = self._planned(self.path, args, kwargs)
            self.index = InfluenceIndex.from_builder(builder, self.destination)
        except BuildFolderError as error:
            # An unfinished build of an earlier training is in the way: this training's index must not be lost for it.
            beside = self.path.with_name(f"{self.path.name}-{state.global_step}-{uuid.uuid4().hex[:8]}")
            logger.warning("%s The index goes to %s.", error, beside)
            self.index = InfluenceIndex.from_builder(self._planned(beside, args, kwargs), self.destination)

    def _planned(self, folder: Path, args: TrainingArguments, kwargs: dict[str, Any]) -> IndexBuilder:
        """The build, with what the Trainer knows and it needs."""
        loader = kwargs["train_dataloader"]
        auto = args.auto_find_batch_size if self.auto_find_batch_size is None else self.auto_find_batch_size
        batch_size = self.batch_size or args.per_device_train_batch_size
        return plan_build(
            kwargs["model"],
            loader.dataset,
            folder,
            self.config,
            BuildOptions(batch_size, self.max_tokens_per_batch, auto, self.max_memory),
            objective=self.objective,
            processing_class=kwargs.get("processing_class"),
            data_collator=self.data_collator or loader.collate_fn,
            examples=self.examples,
            store_text=self.store_text,
        )
