"""Building an index: the part of `InfluenceIndex` that turns a model and its training set into one."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from .building.builder import IndexBuilder
from .building.options import BuildOptions
from .building.plan import plan_build
from .building.replacing import taking_place
from .building.trained_models import trained_model
from .config import InfluenceConfig
from .errors import PublishError
from .hub.cards import index_card, repo_in_card
from .hub.destination import Destination
from .hub.index_mixin import StoredIndex
from .hub.publish import EarlyUploader, rendered
from .storage.claim import remove_left_over
from .storage.files import write_text
from .storage.layout import CARD
from .storage.store import LocalStore
from .tasks import Task, UserObjective


logger = logging.getLogger(__name__)

Index = TypeVar("Index", bound="BuiltIndex")


class BuiltIndex(StoredIndex):
    """An index that can be built: from a model and rows, or by a build that was planned."""

    _processing_class: Any
    _asked_tokenizer: Any

    @classmethod
    def build(
        cls: type[Index],
        model: nn.Module | str | os.PathLike[str],
        dataset: Any,
        path: str | os.PathLike[str],
        *,
        config: InfluenceConfig | None = None,
        processing_class: Any = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int = 8,
        max_tokens_per_batch: int | None = None,
        auto_find_batch_size: bool = False,
        max_memory: int | str | None = None,
        objective: UserObjective | Task | Literal["model"] | str | None = None,
        examples: Any = None,
        store_text: bool | int = True,
        check: bool = True,
        examples_seen: int | None = None,
        overwrite: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
    ) -> Index:
        """Record every row of `dataset` with `model` as it is now and write the index to `path`.

        Row i of the index is row i of `dataset`; of packed rows (`seq_lengths`, `position_ids` that begin anew, ...)
        the i-th document. A build that was interrupted goes on when called again with the same arguments and ends
        with the same bytes.

        Args:
            model (`nn.Module` or `str`): a transformers model or a `PeftModel` with LoRA adapters; or the Hub id or
                folder of a model, or of an adapter, which is loaded over its base model.
            dataset: a tokenized map-style dataset (`datasets.Dataset`, or anything with `len` and indexing), or a
                stream (`IterableDataset`), whose rows are numbered as they come.
            path (`str` or `os.PathLike`): folder of the index; absent, empty, or holding this unfinished build.
                (See `overwrite`.)
            config (`InfluenceConfig`, *optional*): by default `InfluenceConfig()`.
            processing_class (*optional*): the tokenizer; goes into the index, so that it answers text queries. By
                default that of a `model` given by name.
            data_collator (`Callable`, *optional*): by default pads on the right, labels with -100.
            batch_size (`int`, *optional*, defaults to 8): rows per forward pass; changes the result by rounding.
            max_tokens_per_batch (`int`, *optional*): instead of `batch_size`, as many examples of like length as have
                so many tokens together, padding included; a longer one goes alone.
            auto_find_batch_size (`bool`, *optional*, defaults to `False`): halve a batch that does not fit into
                memory, and those after it, and go on.
            max_memory (`int` or `str`, *optional*): what is kept of layers while the curvature is gathered or fitted,
                in bytes or like "4GB"; by default half of the machine, and 2 GiB for the fit of a layer, or the least
                that works where that is more.
            objective (`Callable`, [`~lorif_hf.tasks.Task`] or `str`, *optional*): `(model, batch) -> (B,)` per-example
                losses in nats, or a task or the name of a registered one; `"model"`: the model's own loss, one row at
                a time, whatever the model is. By default the task of the model's class (token-summed cross-entropy, or
                the classifier's loss) where the check shows that it is what the model is trained on, else `"model"`.
            examples (*optional*): the same rows with the columns that people are shown: "text", else all columns that
                hold text; "example_id" or "id", your own names for the rows. By default those columns of `dataset`;
                where there is no text, `input_ids` are decoded.
            store_text (`bool` or `int`, *optional*, defaults to `True`): whole text, so many characters, or none.
            check (`bool`, *optional*, defaults to `True`): before the pass, see on a few of the first rows that losses
                and gradients are those of autograd, row by row.
            examples_seen (`int`, *optional*): of a stream, how many of its first rows were trained on; by default its
                length, where it has one ([`~lorif_hf.recording.streamed_rows.StreamedRows`] says how it is read).
            overwrite (`bool`, *optional*, defaults to `False`): replace an index that is in `path`, or an unfinished
                build of another. The new one is built beside it and takes its place when it is whole; until then the
                old one stays as it is. What else lies in the folder, and your own words on the card, are kept.
            push_to_hub (`bool`, *optional*, defaults to `False`): push the index when it is whole; its shards are
                uploaded while the build goes on.
            repo_id, private, token (*optional*): as in [`~InfluenceIndex.push_to_hub`]; the token also loads a `model`
                given by name.

        Returns:
            `InfluenceIndex`: the finished index.

        Raises:
            [`~lorif_hf.errors.RecordingCheckError`]: what would be recorded is not what the model is trained on.
            [`~lorif_hf.errors.LorifError`]: a typed one for everything else that can be wrong with the input; finished
            shards are kept.

        Example:

        ```python
        >>> index = InfluenceIndex.build(model, dataset, "my-index", processing_class=tokenizer)
        >>> index = InfluenceIndex.build("me/my-model", dataset, "my-index", overwrite=True)
        ```
        """
        folder = Path(path)
        options = BuildOptions(batch_size, max_tokens_per_batch, auto_find_batch_size, max_memory, check, overwrite)
        if isinstance(model, (str, os.PathLike)):
            model, loaded = trained_model(os.fspath(model), token)
            processing_class = loaded if processing_class is None else processing_class
        builder = plan_build(
            model,
            dataset,
            folder,
            config,
            options,
            objective=objective,
            processing_class=processing_class,
            data_collator=data_collator,
            examples=examples,
            store_text=store_text,
            examples_seen=examples_seen,
        )
        destination = Destination(repo_id or folder.name, private, token) if push_to_hub else None
        return cls.from_builder(builder, destination)

    @classmethod
    def from_builder(cls: type[Index], builder: IndexBuilder, destination: Destination | None = None) -> Index:
        """Run a build that was planned ([`~lorif_hf.building.plan.plan_build`]), and push its index.

        Args:
            builder (`IndexBuilder`): the build.
            destination (`Destination`, *optional*): where the index is pushed; its shards are uploaded while the build
                goes on.

        Example:

        ```python
        >>> InfluenceIndex.from_builder(plan_build(model, dataset, Path("my-index"), None, BuildOptions(8)))
        ```
        """
        with taking_place(builder) as missing:
            if missing and destination is None:
                builder.run()
            elif missing and destination is not None:
                with EarlyUploader(builder.folder, destination) as uploader:
                    builder.run(uploader.add)
        index = cls(LocalStore(builder.place))
        if builder.processing_class is not None:
            index._processing_class = index._asked_tokenizer = builder.processing_class
        remove_left_over(index.path)
        index._write_card(destination, renew=builder.options.overwrite)
        if destination is not None:
            index._push(destination)
        return index

    def _write_card(self, destination: Destination | None, renew: bool) -> None:
        """The card beside a new index. That of an index in whose place it is, keeps its owner's words."""
        path = self.path / CARD
        existing = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        if existing is not None and not renew:
            return
        repo_id = destination.repo_id if destination else repo_in_card(existing or "") or "user/my-index"

        def card(name: str, old: str | None) -> str:
            return index_card(self.manifest, self.config, name, old, (), destination.model_id if destination else None)

        try:
            write_text(path, rendered(card, repo_id, existing))
        except PublishError as error:  # of the old card: the new index is whole all the same
            logger.warning("%s The card of %s stays as it was.", error, self.path)

    @classmethod
    def build_over(cls, model: Any, checkpoints: Any, dataset: Any, path: Any, **options: Any) -> Any:
        """An index of each checkpoint of a training, scored as their sum with its learning rates: see
        [`~lorif_hf.InfluenceEnsemble.build`], whose arguments and result these are.

        Example:

        ```python
        >>> ensemble = InfluenceIndex.build_over(model, "out", dataset, "my-ensemble")
        ```
        """
        from .ensemble import InfluenceEnsemble

        return InfluenceEnsemble.build(model, checkpoints, dataset, path, **options)
