"""Querying: measure the query's gradients and precondition them."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.matrices import Matrices, dense, weighted_sums
from ..algebra.scoring import QueryGroup
from ..curvature.encoding import Encoder
from ..errors import DatasetError, LorifError, ObjectiveError, QueryError, UnsupportedModuleError
from ..layers.modules import base_model, unwrap
from ..progress import progress
from ..recording.recorder import GradientRecorder, Recording
from ..recording.rows import tokens_per_example
from ..registry import TASKS
from ..storage.layout import Manifest, ModuleEntry
from ..tasks import Custom, Feature, Task, UserObjective, task_of
from ..tasks.base import known_task
from ..tasks.collation import goes_with, padding_collator
from ..tasks.measures import check_measure, objective_of, usual_measure
from ..tasks.own_loss import ModelLoss, TrainerLoss, model_loss
from ..tasks.query_forms import Query, read_queries
from ..tasks.query_texts import pair_text, prompt_length, query_text, target_texts
from .device_scan import usable_device
from .matching import matching_modules
from .options import QueryOptions
from .preconditioning import Preconditioner
from .queried_index import QueriedIndex
from .query_tokens import measured_tokens, token_alone


@dataclass(frozen=True)
class MeasuredQueries:
    """Queries ready to be scored.

    Args:
        preconditioned (`dict[str, list[QueryGroup]]`): per module Q~ = H^-1 G~_q, float32: d1 x d2 matrices, or
            products of two thin ones where that is all a query is.
        losses (`list[float]`): what was measured of each, nats: the loss, or what is lowered like one.
    """

    preconditioned: dict[str, list[QueryGroup]]
    losses: list[float]


@dataclass(frozen=True)
class Part:
    """What goes through the model as one example, for a query that is a weighted sum of such.

    Args:
        feature (`Feature`): the example.
        query (`int`): the query's place among those that are measured together.
        number (`int`): the query's number as the user counts, for errors.
        weight (`float`): what the example counts for.
    """

    feature: Feature
    query: int
    number: int
    weight: float


class Measurement:
    """What is asked in one call, read and checked; nothing has gone through the model yet.

    Args:
        model (`nn.Module`): the model that was indexed.
        queries: in any form that [`InfluenceIndex.attribute`] takes.
        index (`QueriedIndex`): the index.
        scored (`Sequence[ModuleEntry]`): what [`~QueriedIndex.scored`] gave.
        options (`QueryOptions`): how they are measured.

    Attributes:
        measure (`str`): what is measured.
        texts (`list[str]`): the queries as a person reads them.
        prompts (`list[int | None]`): how many characters of each are its prompt, which is not measured; `None`: none.
        task (`Task`): the task that the index was built with, or the one that was asked for.
        tokens (`list[list[str]]` or `None`): with `per_token`, the tokens of each query's answer.
        device (`torch.device` or `None`): where they are scored; `None`: on the CPU, in threads.
        projections (`dict[str, TwoSidedProjection]`), encoder (`Encoder`), reductions (`dict[str, Reduction]`): how
            gradients become what is scored.

    Raises:
        [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ModelMismatchError`], [`~lorif_hf.errors.ObjectiveError`].
    """

    def __init__(
        self, model: nn.Module, queries: Any, index: QueriedIndex, scored: Sequence[ModuleEntry], options: QueryOptions
    ):
        self.index, self.scored, self.options = index, scored, options
        self.device = usable_device(options.device)
        self.model = unwrap(model)
        config, manifest = index.config, index.manifest
        matching = matching_modules(self.model, manifest, options.strict)
        index.reader.check(scored, index.rows)
        recorded = manifest.modules if config.joins_layers else list(scored)
        self.modules = [tracked for tracked in matching if tracked.name in {entry.name for entry in recorded}]
        self.task = task = _task(self.model, manifest, options.objective)
        triples = options.measure == "difference"
        self.queries = read_queries(queries, self.model, task, options.processing_class, triples)
        self.measure = options.measure or usual_measure(
            self.queries, self.model, task, manifest.objective, config.output
        )
        check_measure(self.queries, self.measure)
        self.objective = objective_of(self.measure, task, self.model)
        self.collator = padding_collator(self.model, options.processing_class, task.makes_labels)
        self.alone = manifest.alone or self.objective.task.alone
        self.texts = [self._text(query, task) for query in self.queries]
        self.prompts = [
            prompt_length(query.features, text, options.processing_class)
            for query, text in zip(self.queries, self.texts, strict=True)
        ]
        if options.reduce is not None and len(self.texts) > 1:
            self.prompts = [None]
            self.texts = [f"the mean of {len(self.texts)} queries, the first of which is: {self.texts[0]}"]
        self._places: list[tuple[Feature, list[int]]] = []
        self.tokens: list[list[str]] | None = None
        if options.per_token or options.token is not None:
            self._find_tokens(task)
        self.projections = {entry.name: index.projection(entry) for entry in recorded}
        first = {entry.name: index.first(entry) for entry in recorded} if index.curvature.first_pass else {}
        self.encoder = Encoder(config, recorded, first)
        self.reductions = self.encoder.query_reductions()

    def whole(self) -> MeasuredQueries:
        """Gradients of all queries in the scored modules, preconditioned with the index's curvature; with `reduce`,
        their mean."""
        mean = self.options.reduce is not None
        share = 1 / len(self.queries) if mean else 1.0
        parts = [
            Part(feature, 0 if mean else number, number, share * query.sign * (1 if place == 0 else -1))
            for number, query in enumerate(self.queries)
            for place, feature in enumerate(query.features)
        ]
        return self._measured(parts, 1 if mean else len(self.queries))

    def by_token(self) -> Iterator[tuple[int, slice, MeasuredQueries]]:
        """The tokens of each query's answer, at most `batch_size` of one query at a time: its number, which of its
        tokens these are, and they as queries of their own."""
        size = self.options.batch_size
        for number, (feature, positions) in enumerate(self._places):
            sign = self.queries[number].sign
            for start in range(0, len(positions), size):
                some = positions[start : start + size]
                parts = [Part(token_alone(feature, place), i, number, sign) for i, place in enumerate(some)]
                yield number, slice(start, start + len(some)), self._measured(parts, len(some))

    def token_by_token(self, rows: Tensor) -> "Measurement":
        """The same queries, each token of their answers by itself, to be scored against some rows, ascending.

        Raises:
            [`~lorif_hf.errors.QueryError`]: a query's loss is no sum over tokens.
        """
        apart = copy.copy(self)
        apart.options = replace(self.options, per_token=True, token=None)
        apart.index = replace(self.index, rows=rows)
        apart.queries, apart._places = list(self.queries), []
        apart._find_tokens(self.task)
        return apart

    def _text(self, query: Query, task: Task) -> str:
        shown_by = self.options.processing_class
        if query.is_pair:
            return pair_text(query.features, shown_by)
        generates = bool(getattr(getattr(base_model(self.model), "config", None), "is_encoder_decoder", False))
        said = (generates or task.label_kind == "tokens") and not (task.labelled_queries or task.makes_labels)
        return query_text(query.features[0], shown_by, targets=said)

    def _find_tokens(self, task: Task) -> None:
        """Find the tokens of each query's answer; with `token`, leave that alone."""
        token, shown_by = self.options.token, self.options.processing_class
        for number, query in enumerate(self.queries):
            if query.is_pair:
                raise QueryError(
                    f"Query {number} has two completions: leave out per_token= and token=, or ask about one of them, "
                    "{'prompt': ..., 'completion': ...}."
                )
            self._places.append(
                measured_tokens(query.features[0], self.model, self.objective.task, self.collator, number)
            )
        if token is None:
            self.tokens = [target_texts(self.model, task, *place, shown_by) for place in self._places]
            return
        for number, (feature, positions) in enumerate(self._places):
            count = len(positions)
            if not -count <= token < count:
                raise QueryError(
                    f"Query {number} has {count} measured token(s), token={token} is none of them: expected "
                    f"{-count} to {count - 1}."
                )
            self.queries[number] = Query((token_alone(feature, positions[token]),), self.queries[number].sign)

    def _measured(self, parts: Sequence[Part], count: int) -> MeasuredQueries:
        """The queries that parts, in the order of their queries, add up to."""
        preconditioned = Preconditioner(self.index, self.scored, count, self.device or torch.device("cpu"))
        losses = torch.zeros(count, dtype=torch.float64)
        sums = _Sums(Counter(part.query for part in parts))
        recorder = GradientRecorder(
            self.model,
            self.modules,
            self.projections,
            self.objective,
            reductions=self.reductions,
            alone=self.alone,
            scales=self.encoder.in_scales(),
        )
        with recorder, progress(len(parts), "Measuring queries", "queries") as bar:
            size = 1 if self.alone else self.options.batch_size
            batches = _batches(parts, size, self.objective.task.padding_counts)
            recordings = (made for together in batches for made in self._recorded(recorder, together))
            for batch, collated, recording in recordings:
                # A bound of the gradient's rank: none is known of what is not made of tokens.
                tokens = torch.zeros(len(batch), dtype=torch.int64)
                if "input_ids" in collated:
                    tokens = tokens_per_example(collated, len(batch), self.objective.task)
                losses.index_add_(
                    0,
                    torch.tensor([part.query for part in batch]),
                    recording.losses * torch.tensor([part.weight for part in batch], dtype=torch.float64),
                )
                for query_ids, summed, ranks in sums.add(batch, recording.gradients, tokens):
                    preconditioned.add(self.encoder.encode(summed, self.reductions), query_ids, ranks)
                bar.update(len(batch))
        return MeasuredQueries(preconditioned.groups(), losses.tolist())

    def _recorded(
        self, recorder: GradientRecorder, parts: list[Part]
    ) -> Iterator[tuple[list[Part], dict[str, Any], Recording]]:
        """Parts as a batch, and its gradients; in two where they cannot be told apart together, as may happen where
        there are as many as tokens.

        A model may have a limit that no table tells: what its forward pass raises beyond it is the query's error. Each
        part is tried alone, to name the query.
        """
        numbers = list(dict.fromkeys(part.number for part in parts))
        try:
            batch = self.collator([part.feature for part in parts])
            recording = recorder.record(batch, [part.number for part in parts])
        except UnsupportedModuleError as error:
            if error.module is None or len(parts) == 1:
                raise
            middle = len(parts) // 2
            for half in (parts[:middle], parts[middle:]):
                yield from self._recorded(recorder, half)
            return
        except LorifError as error:
            if not isinstance(error, DatasetError):  # of the collator, which speaks of columns
                raise
            failure: Exception = error
        except torch.OutOfMemoryError:
            raise
        except (IndexError, ValueError, RuntimeError) as error:
            failure = error
        else:
            yield parts, batch, recording
            return
        if len(parts) > 1:
            for part in parts:
                list(self._recorded(recorder, [part]))
        names = f"query {numbers[0]}" if len(numbers) == 1 else f"queries {', '.join(map(str, numbers))} together"
        ids = [part.feature["input_ids"] for part in parts if "input_ids" in part.feature]
        tokens = f" of {' and '.join(str(len(row)) for row in ids)} tokens" if ids else ""
        raise QueryError(
            f"The model fails at {names}{tokens} ({type(failure).__name__}: {str(failure)[:300]}). If it takes fewer "
            "tokens, shorten the query; else compare its inputs with a row that the model was trained on."
        ) from failure


class _Sums:
    """Adds up the parts of queries as they come, and gives each query when all of its parts have come.

    Args:
        parts (`Mapping[int, int]`): how many parts each query has; they come in the order of the queries.
    """

    def __init__(self, parts: Mapping[int, int]):
        self._missing = dict(parts)
        self._open: tuple[dict[str, Tensor], int] | None = None  # the last query's sum so far, and its rank at most

    def add(
        self, parts: Sequence[Part], gradients: Mapping[str, Matrices], tokens: Tensor
    ) -> Iterator[tuple[Tensor, dict[str, Matrices], list[int]]]:
        """Numbers, gradients (n, d1, d2) and tokens (0: not known) of the queries that are whole with these parts."""
        query_ids = list(dict.fromkeys(part.query for part in parts))
        weights = torch.zeros(len(query_ids), len(parts))
        for place, part in enumerate(parts):
            weights[query_ids.index(part.query), place] = part.weight
            self._missing[part.query] -= 1
        ranks = [_rank(tokens[weights[i] != 0].tolist()) for i in range(len(query_ids))]
        summed = dict(gradients)
        if not torch.equal(weights, torch.eye(len(parts))):
            summed = {name: weighted_sums(made, weights) for name, made in gradients.items()}
        if self._open is not None or self._missing[query_ids[-1]]:
            formed = {name: dense(made) for name, made in summed.items()}
            if self._open is not None:  # it is the first of these
                carried, rank = self._open
                for name, gradient in carried.items():
                    formed[name][0] += gradient
                ranks[0] = _rank([rank, ranks[0]])
                self._open = None
            if self._missing[query_ids[-1]]:
                self._open = {name: gradient[-1].clone() for name, gradient in formed.items()}, ranks[-1]
                query_ids, ranks = query_ids[:-1], ranks[:-1]
                formed = {name: gradient[:-1] for name, gradient in formed.items()}
            summed = dict(formed)
        if query_ids:
            yield torch.tensor(query_ids), summed, ranks


def _rank(tokens: Sequence[int]) -> int:
    """The tokens of several examples together; 0 where those of one are not known."""
    return sum(tokens) if all(tokens) else 0


def _task(model: nn.Module, manifest: Manifest, objective: UserObjective | Task | str | None) -> Task:
    """What the queries are measured with: what the user says, else what the index was built with."""
    if objective is not None:
        return task_of(model, objective)
    if manifest.objective == Custom.name:
        raise ObjectiveError(
            "The index was built with an objective of your own: pass objective=, the function that measures the query."
        )
    if manifest.objective == TrainerLoss.name:
        # The Trainer is not at hand: what the model says is asked for, by its own loss where a query has labels.
        known = known_task(model)
        return model_loss(model) if known is None or known.makes_labels else known
    if manifest.objective == ModelLoss.name:
        return model_loss(model)
    task: Task = TASKS.get(manifest.objective, manifest.extensions.get(manifest.objective))
    return task


def _batches(parts: Sequence[Part], batch_size: int, of_one_length: bool) -> Iterator[list[Part]]:
    """Parts that go through the model together: neighbours whose tensors go into one batch, without any padding where
    that would count."""
    batch: list[Part] = []
    for part in parts:
        if batch and (len(batch) == batch_size or not goes_with(batch[0].feature, part.feature, of_one_length)):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch
