"""`InfluenceCallback`: an index at the end of a training."""

import logging
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.builder import check_folder, plan_build
from lorif_hf.errors import BuildFolderError, DatasetError, RecordingError
from lorif_hf.hub.publish import prepare_repo
from lorif_hf.storage.layout import MANIFEST


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
            order, for people to read.
        text_column, example_id, store_text: as in [`InfluenceIndex.build`].
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
        objective: Callable[[nn.Module, dict[str, Any]], Any] | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        examples: Any = None,
        text_column: str | None = None,
        example_id: str | None = None,
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
        self.push_to_hub = push_to_hub
        self.repo_id = repo_id
        self.private, self.token = private, token
        self.objective = objective
        self.shown = {
            "examples": examples,
            "text_column": text_column,
            "example_id": example_id,
            "store_text": store_text,
        }
        self.index: InfluenceIndex | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse now what could only fail after hours of training."""
        check_folder(self.path)
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
        plan_build(folder=self.path, **self._arguments(args, kwargs), **self.shown).check_first_batch()
        if self.push_to_hub:
            prepare_repo(self.repo_id or self.path.name, private=self.private, token=self.token)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the index. The model is left as it was."""
        build = partial(
            InfluenceIndex.build,
            **self._arguments(args, kwargs),
            **self.shown,
            push_to_hub=self.push_to_hub,
            repo_id=self.repo_id,
            private=self.private,
            token=self.token,
        )
        try:
            self.index = build(path=self.path)
        except BuildFolderError as error:
            # An unfinished build of an earlier training is in the way: this training's index must not be lost for it.
            beside = self.path.with_name(f"{self.path.name}-{state.global_step}-{uuid.uuid4().hex[:8]}")
            logger.warning("%s The index goes to %s.", error, beside)
            self.index = build(path=beside)

    def _arguments(self, args: TrainingArguments, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the Trainer knows and a build needs."""
        loader = kwargs["train_dataloader"]
        return {
            "model": kwargs["model"],
            "dataset": loader.dataset,
            "config": self.config,
            "processing_class": kwargs.get("processing_class"),
            "data_collator": self.data_collator or loader.collate_fn,
            "batch_size": self.batch_size or args.per_device_train_batch_size,
            "max_tokens_per_batch": self.max_tokens_per_batch,
            "max_memory": self.max_memory,
            "auto_find_batch_size": args.auto_find_batch_size
            if self.auto_find_batch_size is None
            else self.auto_find_batch_size,
            "objective": self.objective,
        }
