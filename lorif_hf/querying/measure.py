"""Querying: measure the query's gradients and precondition them."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..algebra.factors import factorize, reconstruct
from ..algebra.matrices import Matrices, dense
from ..algebra.projection import TwoSidedProjection
from ..algebra.scoring import QueryGroup
from ..algebra.thin_queries import compress, joined, widest_rank
from ..codecs import Codec, codec_of
from ..config import InfluenceConfig
from ..curvature import Curvature, curvature_of
from ..curvature.encoding import Encoder, checked_projection, stored_entries
from ..errors import DatasetError, LorifError, ModelMismatchError, ObjectiveError, QueryError
from ..layers.adapters import inactive_adapters
from ..layers.modules import TrackedModule, matches, modules_by_name, unwrap
from ..progress import progress
from ..recording.identity import identify
from ..recording.recorder import GradientRecorder, Recording
from ..recording.rows import tokens_per_example
from ..registry import TASKS
from ..storage.layout import Manifest, ModuleEntry
from ..storage.once import Once
from ..storage.shards import ShardReader
from ..tasks import Custom, Feature, Task, UserObjective, task_of
from ..tasks.base import known_task
from ..tasks.collation import PaddingCollator, padding_collator
from ..tasks.objectives import OUTPUTS
from ..tasks.own_loss import ModelLoss, TrainerLoss, model_loss
from ..tasks.query_forms import query_features, query_text
from .options import QueryOptions


_WHOLE_QUERIES = 1 << 26  # bytes of a layer's queries up to which time alone decides how they are held

_DIFFERENCES = {
    "weights_sha256": "the recorded layers",
    "other_weights": "parameters outside of the recorded layers",
    "adapter": "the adapters' settings",
}


@dataclass(frozen=True)
class QueriedIndex:
    """What a query needs of an index.

    Args:
        manifest (`Manifest`): what it is.
        config (`InfluenceConfig`): what it was built with.
        reader (`ShardReader`): of its files.
        rows (`Tensor` or `None`): the selected rows, ascending; `None`: all.
        projections (`Once`): those that queries have drawn so far: drawing them anew would take longer than scoring a
            small index.
    """

    manifest: Manifest
    config: InfluenceConfig
    reader: ShardReader
    rows: Tensor | None = None
    projections: Once[str, TwoSidedProjection] = field(default_factory=Once)

    @cached_property
    def codec(self) -> Codec:
        return codec_of(self.config)

    @cached_property
    def curvature(self) -> Curvature:
        return curvature_of(self.config)

    def projection(self, entry: ModuleEntry) -> TwoSidedProjection:
        """The projection of a layer, drawn where no query has yet."""
        return self.projections.get(entry.name, lambda: checked_projection(entry, self.config))

    @property
    def count(self) -> int:
        """Rows that are scored."""
        return self.manifest.num_examples if self.rows is None else len(self.rows)

    def scored(self, pattern: str | Sequence[str] | None) -> list[ModuleEntry]:
        """What is scored: all that is stored, or the modules whose names match, as `target_modules` does.

        Raises:
            [`~lorif_hf.errors.QueryError`]: none does, or the layers cannot be told apart.
        """
        modules = self.manifest.modules
        if pattern is None:
            return stored_entries(self.config, modules)
        if self.config.projection_dim is not None:
            raise QueryError(
                "This index projects all layers together (projection_dim): its scores have no single modules."
            )
        try:
            chosen = [entry for entry in modules if matches(entry.name, pattern)]
        except re.error as error:
            raise QueryError(f"modules={pattern!r} is not a valid regular expression ({error}).") from None
        if not chosen:
            raise QueryError(
                f"modules={pattern!r} matches none of the index's {len(modules)} modules, for example "
                f"'{modules[0].name}'."
            )
        return chosen


@dataclass(frozen=True)
class MeasuredQueries:
    """Queries ready to be scored.

    Args:
        preconditioned (`dict[str, list[QueryGroup]]`): per module Q~ = H^-1 G~_q, float32: d1 x d2 matrices, or
            products of two thin ones where that is all a query is.
        texts (`list[str]`): the queries as a person reads them.
        losses (`list[float]`): the queries' losses, nats.
    """

    preconditioned: dict[str, list[QueryGroup]]
    texts: list[str]
    losses: list[float]


def measure(
    model: nn.Module, queries: Any, index: QueriedIndex, scored: Sequence[ModuleEntry], options: QueryOptions
) -> MeasuredQueries:
    """Gradients of the queries' losses in the `scored` modules, preconditioned with the index's curvature.

    Args:
        model (`nn.Module`): the model that was indexed.
        queries: in any form that [`InfluenceIndex.attribute`] takes.
        index (`QueriedIndex`): the index.
        scored (`Sequence[ModuleEntry]`): what [`~QueriedIndex.scored`] gave.
        options (`QueryOptions`): how they are measured.

    Raises:
        [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ModelMismatchError`], [`~lorif_hf.errors.ObjectiveError`].
    """
    model, config, processing_class = unwrap(model), index.config, options.processing_class
    matching = _matching_modules(model, index.manifest, options.strict)
    index.reader.check(scored, index.rows)
    # A norm over all layers, or a projection of them together, needs them all.
    whole = config.normalize or config.projection_dim is not None
    recorded = index.manifest.modules if whole else list(scored)
    modules = [tracked for tracked in matching if tracked.name in {entry.name for entry in recorded}]
    task = _task(model, index.manifest, options.objective)
    features = query_features(queries, model, task, processing_class)
    projections = {entry.name: index.projection(entry) for entry in recorded}
    first_pass = index.curvature.first_pass
    first = {e.name: first_pass.load(index.reader.curvature(e), e) for e in recorded} if first_pass else {}
    encoder = Encoder(config, recorded, first)
    collator = padding_collator(model, processing_class, task.makes_labels)
    alone = index.manifest.alone or task.alone
    preconditioned = _Preconditioner(index, scored, len(features))
    losses: list[float] = []
    objective = OUTPUTS[config.output](task)
    recorder = GradientRecorder(model, modules, projections, objective, alone=alone)
    with recorder, progress(len(features), "Measuring queries", "queries") as bar:
        for query_ids in _batches(
            features, 1 if alone else options.batch_size, task.padding_counts or task.token_axes > 1
        ):
            batch, recording = _recorded(recorder, collator, features, query_ids)
            # A bound of the gradient's rank: none is known of what is not made of tokens.
            counted = tokens_per_example(batch, len(query_ids), task if "input_ids" in batch else None)
            tokens = counted.tolist() if "input_ids" in batch else [0] * len(query_ids)
            preconditioned.add(encoder.encode(recording.gradients), torch.tensor(query_ids), tokens)
            losses += recording.losses.tolist()
            bar.update(len(query_ids))
    texts = [query_text(feature, processing_class) for feature in features]
    return MeasuredQueries(preconditioned.groups(), texts, losses)


def _recorded(
    recorder: GradientRecorder, collator: PaddingCollator, features: Sequence[Feature], query_ids: Sequence[int]
) -> tuple[dict[str, Any], Recording]:
    """The queries of these numbers as a batch, and its gradients.

    A model may have a limit that no table tells: what its forward pass raises beyond it is the query's error. Each
    query is tried alone, to name the one.
    """
    try:
        batch = collator([features[i] for i in query_ids])
        return batch, recorder.record(batch, query_ids)
    except LorifError as error:
        if not isinstance(error, DatasetError):  # of the collator, which speaks of columns
            raise
        failure: Exception = error
    except torch.OutOfMemoryError:
        raise
    except (IndexError, ValueError, RuntimeError) as error:
        failure = error
    if len(query_ids) > 1:
        for number in query_ids:
            _recorded(recorder, collator, features, [number])
    names = f"query {query_ids[0]}" if len(query_ids) == 1 else f"queries {', '.join(map(str, query_ids))} together"
    ids = [features[i]["input_ids"] for i in query_ids if "input_ids" in features[i]]
    tokens = f" of {' and '.join(str(len(row)) for row in ids)} tokens" if ids else ""
    raise QueryError(
        f"The model fails at {names}{tokens} ({type(failure).__name__}: {str(failure)[:300]}). If it takes fewer "
        "tokens, shorten the query; else compare its inputs with a row that the model was trained on."
    ) from failure


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


class _Preconditioner:
    """Q~ = H^-1 G~_q of each layer.

    Whitened gradients already are what the Kronecker curvature needs, and have the rank of the query's tokens: they
    are held as thin factors from the start. H^-1 of kept eigenpairs fills a gradient up.
    """

    def __init__(self, index: QueriedIndex, scored: Sequence[ModuleEntry], queries: int):
        self.index, self.scored, self.queries = index, scored, queries
        self._groups: dict[str, list[QueryGroup]] = {entry.name: [] for entry in scored}

    def add(self, gradients: dict[str, Matrices], query_ids: Tensor, tokens: Sequence[int]) -> None:
        """Take in the gradients (B, d1, d2) of a batch of queries, by layer, and how many tokens each query has (0:
        none that are known)."""
        config, pairs = self.index.config, self.index.codec.pairs
        for entry in self.scored:
            gradient = dense(gradients[entry.name]).to("cpu")
            if config.factorize_query and config.factor_rank is not None:
                gradient = reconstruct(*factorize(gradient, min(config.factor_rank, *gradient.shape[1:])))
            if not self.index.curvature.keeps_rank or pairs is None:
                self._groups[entry.name].append(QueryGroup(query_ids, gradient))
                continue
            # Queries that fill the memory are held thin also where that takes longer.
            examples = self.index.count if 4 * self.queries * entry.d1 * entry.d2 <= _WHOLE_QUERIES else math.inf
            widest = widest_rank(pairs, entry.d1, entry.d2, self.queries, examples)
            ranks = [count or widest for count in tokens]
            self._groups[entry.name] += compress(gradient, query_ids, widest, ranks)

    def groups(self) -> dict[str, list[QueryGroup]]:
        """Of all queries, by layer."""
        return {entry.name: self._solved(joined(self._groups.pop(entry.name)), entry) for entry in self.scored}

    def _solved(self, groups: list[QueryGroup], entry: ModuleEntry) -> list[QueryGroup]:
        curvature = self.index.curvature
        if curvature.keeps_rank:
            return groups
        tensors = curvature.load(self.index.reader.curvature(entry), entry)
        return [QueryGroup(group.query_ids, curvature.precondition(group.left, tensors)) for group in groups]


def _matching_modules(model: nn.Module, manifest: Manifest, strict: bool) -> list[TrackedModule]:
    """The model's layers that the index records, or an error that says how the model differs."""
    expected = {entry.name: (entry.in_features, entry.out_features) for entry in manifest.modules}
    # By name, not by the manifest's pattern: a pattern from the Hub could be one that takes for ever.
    followed = {entry.name for entry in manifest.modules if entry.followed}
    kinds = {entry.name: (entry.kind, entry.parameter) for entry in manifest.modules}
    present = modules_by_name(model, kinds, followed)
    shapes = {name: tracked.matrix_shape for name, tracked in present.items()}
    if shapes != expected:
        different = [name for name in expected if shapes.get(name) != expected[name]]
        name = different[0]
        raise ModelMismatchError(
            f"The index was made with another architecture ({manifest.model.get('model_class')}): {len(different)} "
            f"module(s) differ, first '{name}': indexed {expected[name]}, the query's model has "
            f"{shapes.get(name, 'no such module')}. Query with the model that was indexed."
        )
    for adapter, active in inactive_adapters(model, expected).items():
        raise ModelMismatchError(
            f"The index records the adapter '{adapter}', which is not active in the query's model (active: "
            f"{', '.join(active) or 'none'}): call model.set_adapter('{adapter}'), or enable its adapters."
        )
    modules = [present[name] for name in expected]
    queried = identify(model, modules).to_dict()
    different = [
        key for key in ("weights_sha256", "other_weights", "adapter") if queried[key] != manifest.model.get(key)
    ]
    if different:
        problem = (
            "The weights of the query's model are not those that were indexed "
            f"({_DIFFERENCES[different[0]]} differ; the index is of "
            f"{manifest.model.get('name') or manifest.model.get('model_class')}): its training went on, "
            "another checkpoint was loaded, or the dtype differs."
        )
        if strict:
            raise ModelMismatchError(f"{problem} Load the indexed model, or pass strict=False to go on all the same.")
        warnings.warn(f"{problem} The scores are those of another model.", stacklevel=4)
    return modules


def _batches(features: Sequence[dict[str, Any]], batch_size: int, of_one_length: bool = False) -> Iterator[list[int]]:
    """Numbers of queries that go through the model together: neighbours with the same entries, and of the same length
    where padding would change them."""
    batch: list[int] = []
    for number, feature in enumerate(features):
        first = features[batch[0]] if batch else feature
        alike = set(first) == set(feature)
        if alike and of_one_length and "input_ids" in feature:
            alike = np.shape(first["input_ids"]) == np.shape(feature["input_ids"])
        if batch and (len(batch) == batch_size or not alike):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
