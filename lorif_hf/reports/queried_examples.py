"""The queries of an index: the part of `InfluenceIndex` that asks, scores and answers."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import InfluenceConfig
from ..querying.answers import AllScores, all_scores
from ..querying.loading import load_model
from ..querying.measure import Measurement
from ..querying.options import QueryOptions
from ..querying.queried_index import QueriedIndex
from ..storage.examples import read_documents, read_examples, read_values
from ..tasks import Task, UserObjective
from .answering import AnswerOptions, answer
from .attribution import Attribution
from .groups import GroupInfluence, group_influence
from .indexed_examples import IndexedExamples
from .provenance import Provenance


class QueriedExamples(IndexedExamples):
    """Examples that are asked which of them made a model say something."""

    config: InfluenceConfig
    path: Path
    repo_id: str | None
    commit: str | None
    _queried: QueriedIndex
    _asked_tokenizer: Any
    _token: str | bool | None

    @torch.inference_mode(False)  # whoever calls from inside of one: its tensors could not be written
    def attribute(
        self,
        model: nn.Module | str,
        query: Any,
        top_k: int = 10,
        *,
        opponents: int = 0,
        fold_duplicates: bool = False,
        by_layer: bool = False,
        shade: bool = False,
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
            opponents (`int`, *optional*, defaults to 0): so many of the lowest scored examples beside them, lowest
                first; none of these is among the best.
            fold_duplicates (`bool`, *optional*, defaults to `False`): `top_k` distinct examples: of near-duplicates
                (equal but for case, white space and punctuation, or with 80% of their runs of five words in common)
                the best ranked is shown, and `copies` of the result names the others. Fewer come out where the
                best ranked (64 `top_k`, and at least 256) say no more.
            by_layer (`bool`, *optional*, defaults to `False`): also the score of each layer, of the shown examples.
            shade (`bool`, *optional*, defaults to `False`): also what each token of the answer, and each of the shown
                examples', adds to the scores. Examples are made anew of their texts; those whose texts do not give
                the tokens and the loss that were recorded are left out of it.
            largest (`bool`, *optional*, defaults to `True`): proponents first; `False` gives opponents alone, most
                negative first.
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
        shown = AnswerOptions(top_k, largest, opponents, fold_duplicates, by_layer, shade)
        choices = (measure, token, reduce, per_token, device)
        asked = self._asked(
            model, query, QueryOptions(modules, processing_class, objective, batch_size, strict, *choices)
        )
        documents = read_documents(self._store, self.manifest) if by_document else None
        return answer(asked, shown, partial(read_examples, self._store, self.manifest), self._provenance(), documents)

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

    def influence_by(self, model: nn.Module | str, query: Any, column: str, **options: Any) -> GroupInfluence:
        """The influence of groups of examples: sums over all that have the same value in a column.

        Args:
            model, query: as in [`~InfluenceIndex.attribute`].
            column (`str`): "source", "label", or whatever the examples hold ([`~InfluenceIndex.examples`]).
            options: the other arguments of [`~InfluenceIndex.scores`].

        Example:

        ```python
        index.influence_by(model, queries, "source").to_pandas()  # queries x groups
        ```
        """
        values = read_values(self._store, self.manifest, column)
        chosen = values if self._rows is None else [values[row] for row in self._rows.tolist()]
        dense = self._dense(model, query, QueryOptions(**options), per_module=False, weighted=True)
        return group_influence(dense.asked.texts, dense.scores, chosen, column)

    @torch.inference_mode(False)
    def _dense(self, model: Any, queries: Any, options: QueryOptions, per_module: bool, weighted: bool) -> AllScores:
        """Every score, and the queries as they were measured."""
        return all_scores(self._asked(model, queries, options), weighted, per_module)

    def _provenance(self) -> Provenance:
        model = self.manifest.model
        return Provenance.now(
            model=model.get("name") or model.get("model_class"),
            repo_id=self.repo_id,
            commit=self.commit,
            index=self.repo_id or self.path.resolve().name,
            num_examples=len(self),
            config=self.manifest.config,
        )

    def _asked(self, model: Any, query: Any, options: QueryOptions) -> Measurement:
        scored = self._queried.scored(options.modules)
        if isinstance(model, (str, os.PathLike)):
            names = [entry.name for entry in self.manifest.modules]
            model = load_model(os.fspath(model), self.manifest.model, self._token, names)
        if options.processing_class is None:
            options = replace(options, processing_class=self._asked_tokenizer)
        return Measurement(model, query, self._queried, scored, options)
