"""`InfluenceIndex`: build, load, query, push. A facade: the work is in build, query, storage and algebra."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .building.builder import IndexBuilder
from .building.options import BuildOptions
from .building.plan import plan_build
from .checks import whole_number
from .codecs import codec_of
from .config import InfluenceConfig
from .coverage import Coverage
from .errors import QueryError
from .hub.cards import index_card
from .hub.destination import Destination
from .hub.index_mixin import StoredIndex
from .hub.publish import EarlyUploader
from .querying.answers import AllScores, all_scores, best_rows
from .querying.index_tokenizer import confined_tokenizer, load_tokenizer
from .querying.loading import load_model
from .querying.measure import Measurement
from .querying.options import QueryOptions
from .querying.queried_index import QueriedIndex, chosen_rows
from .querying.verify import verify_index
from .reports.attribution import Attribution
from .reports.provenance import Provenance
from .storage.claim import remove_left_over
from .storage.examples import read_column, read_documents, read_examples
from .storage.files import write_text
from .storage.layout import CARD
from .storage.shards import ShardReader
from .storage.store import LocalStore, Store
from .tasks import Task, UserObjective


class InfluenceIndex(StoredIndex):
    """An index of a training set: rank-c gradient factors of every example, and the curvature to query them with.

    Make one with [`~InfluenceIndex.build`] (or `InfluenceCallback` at the end of a training), load one with
    [`~InfluenceIndex.from_pretrained`].

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

    def __len__(self) -> int:
        return self._queried.count

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

    @torch.inference_mode(False)  # whoever calls from inside of one: its tensors could not be written
    def attribute(
        self,
        model: nn.Module | str,
        query: Any,
        top_k: int = 10,
        *,
        largest: bool = True,
        measure: str | None = None,
        token: int | None = None,
        per_token: bool = False,
        reduce: str | None = None,
        modules: str | Sequence[str] | None = None,
        processing_class: Any = None,
        objective: UserObjective | Task | str | None = None,
        batch_size: int = 8,
        strict: bool = True,
        device: str | torch.device | None = None,
        by_document: bool = False,
    ) -> Attribution:
        """The training examples that made the model say this, ranked.

        Args:
            model (`nn.Module` or `str`): the model that was indexed, or a Hub id or folder to load it from.
            query: a string; a (prompt, completion) pair, measured on the completion; chat messages, measured on the
                last answer; a (text, label) pair for a classifier; an image of PIL's or the `Path` of one; a dict of
                what the model takes (`input_ids`, `pixel_values`, ...), such as a training row, or of a dataset's
                "text", "prompt" and "completion", "chosen" and "rejected", "messages", "image" or "audio"
                ([`~lorif_hf.tasks.query_forms.read_queries`] names all keys); a list of these; a `Dataset`.
            top_k (`int`, *optional*, defaults to 10): k, examples per query; at most N come out.
            largest (`bool`, *optional*, defaults to `True`): proponents first; `False` gives opponents, most negative
                first.
            measure (`str`, *optional*): what of a query is measured: "loss"; "log_prob", the log-probability of its
                labels (of a completion); "margin", the log-odds of its right classes; "difference", the
                log-probability of the chosen completion less that of the rejected one, or their rewards'; "reward",
                what a reward model gives. By default the difference of two completions, else what was recorded.
            token (`int`, *optional*): measure one token of the answer alone, by its place among those that are
                measured (the order of `per_token`); negative ones count from the end.
            per_token (`bool`, *optional*, defaults to `False`): rank the examples for each token of the answer; the
                tokens of a query are measured `batch_size` at a time.
            reduce (`str`, *optional*): "mean": all queries are one, the mean of theirs: which examples serve this
                benchmark?
            modules (`str` or `Sequence[str]`, *optional*): score only the layers whose names match (a regular
                expression, or a list of names and suffixes); only their factors are read.
            processing_class (*optional*): tokenizer, image processor, feature extractor or processor for queries; by
                default the tokenizer in the index, which is asked in a process with limits on time and memory unless
                the index was built in this process.
            objective (`Callable`, [`~lorif_hf.tasks.Task`] or `str`, *optional*): the task whose loss is measured, as
                in [`~InfluenceIndex.build`]; by default what the index was built with.
            batch_size (`int`, *optional*, defaults to 8): queries per forward pass.
            strict (`bool`, *optional*, defaults to `True`): refuse a model with other weights; `False` warns.
            device (`str` or `torch.device`, *optional*): where the index is scored, as "cuda"; by default on the CPU,
                wherever the model is.
            by_document (`bool`, *optional*, defaults to `False`): rank documents that packing cut into several rows
                whole: by the sum of the scores of all their pieces. Shown is the best piece; `pieces` has the rows.

        Returns:
            [`Attribution`]: scores and rows of shape (Q, k), or (Q, T, k) for T tokens, joined to the examples. Scores
            are in nats per unit of example weight; positive: training on the example more lowers the query's loss, or
            raises its log-probability, margin, difference or reward.

        Raises:
            [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ModelMismatchError`],
            [`~lorif_hf.errors.IndexCorruptedError`].
        """
        whole_number(top_k, "top_k", 1, QueryError)
        choices = (measure, token, reduce, per_token, device)
        asked = self._asked(
            model, query, QueryOptions(modules, processing_class, objective, batch_size, strict, *choices)
        )
        documents = read_documents(self._store, self.manifest) if by_document else None
        best = best_rows(asked, top_k, largest, documents)
        rows = best.indices[best.indices >= 0].unique().tolist()
        examples = dict(zip(rows, read_examples(self._store, self.manifest, rows), strict=True))
        for row, pieces in best.pieces.items():
            examples[row] = {**examples[row], "pieces": pieces}
        answer = (best.scores, best.indices, examples, asked.texts, best.losses, asked.measure, asked.tokens)
        return Attribution(*answer, provenance=Provenance(repo_id=self.repo_id, commit=self.commit))

    def scores(
        self,
        model: nn.Module | str,
        queries: Any,
        *,
        per_module: bool = False,
        weighted: bool = True,
        measure: str | None = None,
        token: int | None = None,
        per_token: bool = False,
        reduce: str | None = None,
        modules: str | Sequence[str] | None = None,
        processing_class: Any = None,
        objective: UserObjective | Task | str | None = None,
        batch_size: int = 8,
        strict: bool = True,
        device: str | torch.device | None = None,
    ) -> Any:
        """Every score, dense. The arguments are those of [`~InfluenceIndex.attribute`].

        Args:
            per_module (`bool`, *optional*, defaults to `False`): give the scores layer by layer instead of their sum.
            weighted (`bool`, *optional*, defaults to `True`): multiply by [`~InfluenceIndex.example_weights`].

        Returns:
            `Tensor` of float32 (Q, N), or (Q, T, N) for T tokens (NaN beyond a query's last), or a `dict` of these by
            module name. Nats per unit of example weight; positive: a proponent. The columns of a selection are its
            rows in ascending order. A tensor that would take over half of the free memory is a memory map of a
            temporary file. The scores of a query's tokens add up to the query's, unless gradients are divided by their
            norm (`normalize`) or cut (`factorize_query`).
        """
        choices = (measure, token, reduce, per_token, device)
        options = QueryOptions(modules, processing_class, objective, batch_size, strict, *choices)
        return self._dense(model, queries, options, per_module, weighted).scores

    def example_weights(self) -> Tensor:
        """What each example counts for, float32 (N,): 1 - p where margins are recorded (TRAK), else 1."""
        if not self.config.weighted:
            return torch.ones(len(self))
        weights = torch.cat([self._queried.reader.weights(shard) for shard in self.manifest.shards])
        return weights if self._rows is None else weights[self._rows]

    def self_influence(self) -> Tensor:
        """Each example's influence on its own loss, float64 (N,), in nats per unit of weight; never negative.

        Computed when the index was built: sum over layers of vec(G~_i)^T H^-1 vec(G~_i), of the whole gradients where
        the metric is known while they are recorded (`curvature` "kronecker" or "none"), else of the stored factors. Of
        whitened layers that are too wide to be formed it is an unbiased estimate (Hutchinson's).
        High values mark rows the model had to memorise: mislabelled, rare or damaged ones.
        """
        influence = torch.from_numpy(np.array(read_column(self._store, self.manifest, "self_influence")))
        return influence if self._rows is None else influence[self._rows]

    def examples(self, rows: list[int]) -> list[dict[str, Any]]:
        """The examples of the given rows: row, example_id, text, num_tokens, loss (nats), self_influence.

        Documents of packed rows have source_row (their row of the dataset), start and stop (their tokens there) and
        document (the same of all pieces of one that packing cut; None: unknown) beside it.
        """
        self._check_rows(rows)
        return read_examples(self._store, self.manifest, rows)

    def verify(self) -> None:
        """Read every file anew and check it; downloads what is not here.

        Every flipped bit is found, but in what the card says: the manifest by its own hash, the other files by the
        hashes in it. The projections are drawn and compared, and all that is stored is finite.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`], [`~lorif_hf.errors.IndexFormatError`]: name the first file that
                is not what it should be.
        """
        verify_index(self._queried, self._store)

    @torch.inference_mode(False)
    def _dense(self, model: Any, queries: Any, options: QueryOptions, per_module: bool, weighted: bool) -> AllScores:
        """Every score, and the queries as they were measured."""
        return all_scores(self._asked(model, queries, options), weighted, per_module)

    def _check_rows(self, rows: Sequence[int]) -> None:
        count = self.manifest.num_examples
        outside = [row for row in rows if not 0 <= row < count]
        if outside:
            raise QueryError(f"Row {outside[0]} is outside the index, which has rows 0 to {count - 1}.")

    def _asked(self, model: Any, query: Any, options: QueryOptions) -> Measurement:
        scored = self._queried.scored(options.modules)
        if isinstance(model, (str, os.PathLike)):
            names = [entry.name for entry in self.manifest.modules]
            model = load_model(os.fspath(model), self.manifest.model, self._token, names)
        if options.processing_class is None:
            options = replace(options, processing_class=self._asked_tokenizer)
        return Measurement(model, query, self._queried, scored, options)
