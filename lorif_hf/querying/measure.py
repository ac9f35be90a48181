"""Querying: measure the query's gradients and precondition them."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.curvature import spectral_solve, woodbury_solve
from ..algebra.factors import factorize, reconstruct
from ..algebra.matrices import Matrices, dense
from ..algebra.projection import TwoSidedProjection
from ..algebra.scoring import QueryGroup
from ..algebra.thin_queries import compress, joined, widest_rank
from ..config import InfluenceConfig
from ..curvature.encoding import Encoder, checked_projection, stored_entries
from ..errors import ModelMismatchError, ObjectiveError, QueryError
from ..layers.modules import TrackedModule, matches, modules_by_name, unwrap
from ..progress import progress
from ..recording.identity import identify
from ..recording.recorder import GradientRecorder
from ..recording.rows import tokens_per_example
from ..storage.layout import Manifest, ModuleEntry
from ..storage.shards import ShardReader
from ..tasks.collation import padding_collator
from ..tasks.objectives import CausalLMObjective, MarginObjective, Objective, UserObjective, find_objective
from ..tasks.query_forms import query_features, query_text


_WHOLE_QUERIES = 1 << 26  # bytes of a layer's queries up to which time alone decides how they are held

_DIFFERENCES = {
    "weights_sha256": "the recorded layers",
    "other_weights": "parameters outside of the recorded layers",
    "adapter": "the adapters' settings",
}


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


def load_model(name: str, identity: dict[str, Any], token: str | bool | None) -> nn.Module:
    """Load the model to query with from a Hub id or folder, with the Auto class that the manifest names.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: the manifest names none that is known.
    """
    import transformers

    known = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    auto_class = identity.get("auto_class")
    if auto_class not in known:
        raise ModelMismatchError(
            f"The index was made with a {identity.get('model_class')}, which no known Auto class loads: load the "
            "model yourself and pass it instead of its name."
        )
    if identity.get("adapter"):
        import peft

        return getattr(peft, auto_class.replace("AutoModel", "AutoPeftModel")).from_pretrained(name, token=token)
    return getattr(transformers, auto_class).from_pretrained(name, token=token)


def measure(
    model: nn.Module,
    queries: Any,
    *,
    manifest: Manifest,
    config: InfluenceConfig,
    reader: ShardReader,
    projections: dict[str, TwoSidedProjection],
    processing_class: Any,
    objective: UserObjective | None,
    batch_size: int,
    strict: bool,
    scored: Sequence[ModuleEntry],
    rows: Tensor | None = None,
) -> MeasuredQueries:
    """Gradients of the queries' losses in the `scored` modules, preconditioned with the index's curvature.

    `projections` has those that queries before have drawn, and takes in those that this one draws: drawing them anew
    would take longer than scoring a small index.

    Raises:
        [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ModelMismatchError`], [`~lorif_hf.errors.ObjectiveError`].
    """
    model = unwrap(model)
    matching = _matching_modules(model, manifest, strict)
    reader.check(scored, rows)
    # A norm over all layers, or a projection of them together, needs them all.
    whole = config.normalize or config.projection_dim is not None
    recorded = manifest.modules if whole else list(scored)
    modules = [tracked for tracked in matching if tracked.name in {entry.name for entry in recorded}]
    if objective is None and manifest.objective == Objective.name:
        raise ObjectiveError(
            "The index was built with an objective of your own: pass objective=, the function that measures the query."
        )
    measured = find_objective(model, objective)
    features = query_features(queries, model, measured, processing_class)
    for entry in recorded:
        if entry.name not in projections:
            projections[entry.name] = checked_projection(entry, config)
    whiteners = {entry.name: reader.whiteners(entry) for entry in recorded} if config.whitening != "none" else None
    encoder = Encoder(config, recorded, whiteners)
    collator = padding_collator(model, processing_class, make_labels=isinstance(measured, CausalLMObjective))
    examples = manifest.num_examples if rows is None else len(rows)
    preconditioned = _Preconditioner(config, reader, scored, len(features), examples)
    losses: list[float] = []
    function = MarginObjective(measured) if config.output == "margin" else measured
    recorder = GradientRecorder(model, modules, projections, function)
    with recorder, progress(len(features), "Measuring queries", "queries") as bar:
        for numbers in _batches(features, batch_size):
            batch = collator([features[i] for i in numbers])
            recording = recorder.record(batch, numbers)
            tokens = tokens_per_example(batch, len(numbers)).tolist()
            preconditioned.add(encoder.encode(recording.gradients), torch.tensor(numbers), tokens)
            losses += recording.losses.tolist()
            bar.update(len(numbers))
    texts = [query_text(feature, processing_class) for feature in features]
    return MeasuredQueries(preconditioned.groups(), texts, losses)


class _Preconditioner:
    """Q~ = H^-1 G~_q of each layer.

    Whitened gradients already are what the Kronecker curvature needs, and have the rank of the query's tokens: they
    are held as thin factors from the start. H^-1 of kept eigenpairs fills a gradient up.
    """

    def __init__(
        self,
        config: InfluenceConfig,
        reader: ShardReader,
        scored: Sequence[ModuleEntry],
        queries: int,
        examples: int,
    ):
        self.config, self.reader, self.scored, self.queries, self.examples = config, reader, scored, queries, examples
        self._found: dict[str, list[QueryGroup]] = {entry.name: [] for entry in scored}

    def add(self, gradients: dict[str, Matrices], numbers: Tensor, tokens: Sequence[int]) -> None:
        """Take in the gradients (B, d1, d2) of some queries, by layer, and how many tokens each query has (0: none
        that are known)."""
        for entry in self.scored:
            one = dense(gradients[entry.name]).to("cpu")
            if self.config.factorize_query and self.config.factor_rank is not None:
                one = reconstruct(*factorize(one, self.config.factor_rank))
            pairs = self.config.codec().pairs
            if self.config.curvature == "low-rank" or pairs is None:
                self._found[entry.name].append(QueryGroup(numbers, one))
            else:
                # Queries that fill the memory are held thin also where that takes longer.
                examples = self.examples if 4 * self.queries * entry.d1 * entry.d2 <= _WHOLE_QUERIES else math.inf
                widest = widest_rank(pairs, entry.d1, entry.d2, self.queries, examples)
                self._found[entry.name] += compress(one, numbers, widest, [count or widest for count in tokens])

    def groups(self) -> dict[str, list[QueryGroup]]:
        """Of all queries, by layer."""
        return {entry.name: self._solved(joined(self._found.pop(entry.name)), entry) for entry in self.scored}

    def _solved(self, groups: list[QueryGroup], entry: ModuleEntry) -> list[QueryGroup]:
        if self.config.curvature != "low-rank":
            return groups
        eigenvectors, eigenvalues, damping, _ = self.reader.eigenpairs(entry)
        solve = spectral_solve if self.config.curvature_rank is None else woodbury_solve
        return [
            QueryGroup(one.numbers, solve(one.left.flatten(1), eigenvectors, eigenvalues, damping).view_as(one.left))
            for one in groups
        ]


def select_modules(
    manifest: Manifest, config: InfluenceConfig, pattern: str | Sequence[str] | None
) -> list[ModuleEntry]:
    """What is scored: all that is stored, or the modules whose names match, as `target_modules` does.

    Raises:
        [`~lorif_hf.errors.QueryError`]: none does, or the layers cannot be told apart.
    """
    if pattern is None:
        return stored_entries(config, manifest.modules)
    if config.projection_dim is not None:
        raise QueryError(
            "This index projects all layers together (projection_dim): its scores have no single modules."
        )
    try:
        chosen = [entry for entry in manifest.modules if matches(entry.name, pattern)]
    except re.error as error:
        raise QueryError(f"modules={pattern!r} is not a valid regular expression ({error}).") from None
    if not chosen:
        raise QueryError(
            f"modules={pattern!r} matches none of the index's {len(manifest.modules)} modules, for example "
            f"'{manifest.modules[0].name}'."
        )
    return chosen


def _matching_modules(model: nn.Module, manifest: Manifest, strict: bool) -> list[TrackedModule]:
    """The model's layers that the index records, or an error that says how the model differs."""
    expected = {entry.name: (entry.in_features, entry.out_features) for entry in manifest.modules}
    # By name, not by the manifest's pattern: a pattern from the Hub could be one that takes for ever.
    found = modules_by_name(model, list(expected))
    shapes = {name: (tracked.in_features, tracked.out_features) for name, tracked in found.items()}
    if shapes != expected:
        different = [name for name in expected if shapes.get(name) != expected[name]]
        name = different[0]
        raise ModelMismatchError(
            f"The index was made with another architecture ({manifest.model.get('model_class')}): {len(different)} "
            f"module(s) differ, first '{name}': indexed {expected[name]}, the query's model has "
            f"{shapes.get(name, 'no such module')}. Query with the model that was indexed."
        )
    modules = [found[name] for name in expected]
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


def _batches(features: Sequence[dict[str, Any]], batch_size: int) -> Iterator[list[int]]:
    """Numbers of queries that go through the model together: neighbours with the same entries."""
    batch: list[int] = []
    for number, feature in enumerate(features):
        if batch and (len(batch) == batch_size or set(features[batch[0]]) != set(feature)):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
