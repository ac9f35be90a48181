"""`InfluenceIndex`: build, load, query, push. A facade: the work is in build, query, storage and algebra."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .building.builder import IndexBuilder
from .building.options import BuildOptions
from .building.plan import plan_build
from .codecs import codec_of
from .config import InfluenceConfig
from .coverage import Coverage
from .hub.cards import index_card
from .hub.destination import Destination
from .hub.index_mixin import StoredIndex
from .hub.publish import EarlyUploader
from .querying.index_tokenizer import confined_tokenizer, load_tokenizer
from .querying.queried_index import QueriedIndex, chosen_rows
from .querying.verify import verify_index
from .reports.queried_examples import QueriedExamples
from .storage.claim import remove_left_over
from .storage.files import write_text
from .storage.layout import CARD
from .storage.shards import ShardReader
from .storage.store import LocalStore, Store
from .tasks import Task, UserObjective


class InfluenceIndex(QueriedExamples, StoredIndex):
    """An index of a training set: rank-c gradient factors of every example, and the curvature to query them with.

    Make one with [`~InfluenceIndex.build`] (or `InfluenceCallback` at the end of a training), load one with
    [`~InfluenceIndex.from_pretrained`].

    It is a sequence of the examples that are indexed: `len(index)`, `index[3]["text"]`, `for example in index`.

    Sign and unit of every score: a positive score is a *proponent*, training on that example more lowers the query's
    loss. Scores are in nats per unit of example weight, summed over the tracked layers.
    """

    def __init__(self, store: Store, rows: Tensor | None = None):
        super().__init__(store, rows)
        layout = codec_of(self.config).layout
        reader = ShardReader(store, self.manifest.shards, self.manifest.curvature, layout)
        self._queried = QueriedIndex(self.manifest, self.config, reader, rows)
        self._processing_class: Any = None
        self._asked_tokenizer: Any = confined_tokenizer(store, self.manifest)

    @classmethod
    def build(
        cls,
        model: nn.Module,
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
        objective: UserObjective | Task | str | None = None,
        examples: Any = None,
        store_text: bool | int = True,
        check: bool = True,
        examples_seen: int | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
    ) -> "InfluenceIndex":
        """Record every row of `dataset` with `model` as it is now and write the index to `path`.

        Row i of the index is row i of `dataset`; of packed rows (`seq_lengths`, `position_ids` that begin anew, ...)
        the i-th document. A build that was interrupted goes on when called again with the same arguments and ends
        with the same bytes.

        Args:
            model (`nn.Module`): a transformers model or a `PeftModel` with LoRA adapters.
            dataset: a tokenized map-style dataset (`datasets.Dataset`, or anything with `len` and indexing), or a
                stream (`IterableDataset`), whose rows are numbered as they come.
            path (`str` or `os.PathLike`): folder of the index; absent, empty, or holding this unfinished build.
            config (`InfluenceConfig`, *optional*): by default `InfluenceConfig()`.
            processing_class (*optional*): the tokenizer; goes into the index, so that it answers text queries.
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
            push_to_hub (`bool`, *optional*, defaults to `False`): push the index when it is whole; its shards are
                uploaded while the build goes on.
            repo_id, private, token (*optional*): as in [`~InfluenceIndex.push_to_hub`].

        Returns:
            `InfluenceIndex`: the finished index.

        Raises:
            [`~lorif_hf.errors.RecordingCheckError`]: what would be recorded is not what the model is trained on.
            [`~lorif_hf.errors.LorifError`]: a typed one for everything else that can be wrong with the input; finished
            shards are kept.
        """
        folder = Path(path)
        builder = plan_build(
            model,
            dataset,
            folder,
            config,
            BuildOptions(batch_size, max_tokens_per_batch, auto_find_batch_size, max_memory, check),
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
    def from_builder(cls, builder: IndexBuilder, destination: Destination | None = None) -> "InfluenceIndex":
        """Run a build that was planned ([`~lorif_hf.building.plan.plan_build`]), and push its index.

        Args:
            builder (`IndexBuilder`): the build.
            destination (`Destination`, *optional*): where the index is pushed; its shards are uploaded while the build
                goes on.
        """
        folder = builder.folder
        if destination is None:
            builder.run()
        else:
            with EarlyUploader(folder, destination) as uploader:
                builder.run(uploader.add)
        index = cls(LocalStore(folder))
        if builder.processing_class is not None:
            index._processing_class = index._asked_tokenizer = builder.processing_class
        remove_left_over(folder)
        if not (folder / CARD).exists():
            repo_id = destination.repo_id if destination else "user/my-index"
            write_text(folder / CARD, index_card(index.manifest, index.config, repo_id, None))
        if destination is not None:
            index._push(destination)
        return index

    @classmethod
    def build_over(cls, model: Any, checkpoints: Any, dataset: Any, path: Any, **options: Any) -> Any:
        """An index of each checkpoint of a training, scored as their sum with its learning rates: see
        [`~lorif_hf.InfluenceEnsemble.build`], whose arguments and result these are."""
        from .ensemble import InfluenceEnsemble

        return InfluenceEnsemble.build(model, checkpoints, dataset, path, **options)

    def select(self, rows: Sequence[int]) -> "InfluenceIndex":
        """The same index over some of its rows: queries read and score these alone.

        Args:
            rows (`Sequence[int]`): row numbers; sorted, each counted once.
        """
        chosen = chosen_rows(rows)
        self._check_rows([int(chosen[0]), int(chosen[-1])])
        view = InfluenceIndex(self._store, chosen)
        view._token = self._token
        view._processing_class, view._asked_tokenizer = self._processing_class, self._asked_tokenizer
        view._queried = replace(self._queried, reader=view._queried.reader, rows=chosen)
        return view

    def __repr__(self) -> str:
        model = self.manifest.model
        return (
            f"InfluenceIndex({self.repo_id or str(self.path)!r}, num_examples={len(self)}, "
            f"modules={len(self.manifest.modules)}, bytes_per_example={self.bytes_per_example:.0f}, "
            f"model={model.get('name') or model.get('model_class')!r})"
        )

    @property
    def bytes_per_example(self) -> float:
        """Bytes of factors stored per example, all layers together."""
        return sum(shard.bytes for shard in self.manifest.shards) / self.manifest.num_examples

    @property
    def coverage(self) -> Coverage:
        """How much of what was trained is tracked (`.share`), and which parameters are not, and why (`.untracked`)."""
        return self.manifest.coverage

    @property
    def processing_class(self) -> Any:
        """The tokenizer, processor, image processor or feature extractor that came with the index, or `None`: loaded
        into this process, whoever made it.

        Text queries do without: they ask the tokenizer in a process with limits, unless the index was built in this
        process or `processing_class=` is passed. Images and sounds need `processing_class=` then.
        """
        if self._processing_class is None:
            self._processing_class = load_tokenizer(self._store, self.manifest)
        return self._processing_class

    def verify(self) -> None:
        """Read every file anew and check it; downloads what is not here.

        Every flipped bit is found, but in what the card says: the manifest by its own hash, the other files by the
        hashes in it. The projections are drawn and compared, and all that is stored is finite.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`], [`~lorif_hf.errors.IndexFormatError`]: name the first file that
                is not what it should be.
        """
        verify_index(self._queried, self._store)
