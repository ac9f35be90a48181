"""Querying: measure the query's gradients, precondition them, score every stored example block by block."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .algebra.curvature import woodbury_solve
from .algebra.factors import factorize, reconstruct
from .algebra.projection import TwoSidedProjection
from .algebra.scoring import bilinear_scores
from .config import InfluenceConfig
from .errors import IndexCorruptedError, ModelMismatchError, ObjectiveError, QueryError
from .progress import progress
from .recording.collation import padding_collator
from .recording.identity import identify
from .recording.modules import TrackedModule, matches, modules_by_name, unwrap
from .recording.objectives import CausalLMObjective, Objective, UserObjective, find_objective
from .recording.queries import query_features, query_text
from .recording.recorder import GradientRecorder
from .storage.layout import Manifest, ModuleEntry
from .storage.shards import ShardReader


_DIFFERENCES = {
    "weights_sha256": "the recorded layers",
    "other_weights": "parameters outside of the recorded layers",
    "adapter": "the adapters' settings",
}


@dataclass(frozen=True)
class MeasuredQueries:
    """Queries ready to be scored.

    Args:
        preconditioned (`dict[str, Tensor]`): per module Q~ = H^-1 G~_q, float32 (Q, d1, d2).
        texts (`list[str]`): the queries as a person reads them.
        losses (`list[float]`): the queries' losses, nats.
    """

    preconditioned: dict[str, Tensor]
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
    processing_class: Any,
    objective: UserObjective | None,
    batch_size: int,
    strict: bool,
    scored: Sequence[ModuleEntry],
) -> MeasuredQueries:
    """Gradients of the queries' losses in the `scored` modules, preconditioned with the index's curvature.

    Raises:
        [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ModelMismatchError`], [`~lorif_hf.errors.ObjectiveError`].
    """
    model = unwrap(model)
    matching = _matching_modules(model, manifest, strict)
    modules = [tracked for tracked in matching if tracked.name in {entry.name for entry in scored}]
    if objective is None and manifest.objective == Objective.name:
        raise ObjectiveError(
            "The index was built with an objective of your own: pass objective=, the function that measures the query."
        )
    measured = find_objective(model, objective)
    features = query_features(queries, model, measured, processing_class)
    projections = {entry.name: _projection(entry, config) for entry in scored}
    collator = padding_collator(model, processing_class, make_labels=isinstance(measured, CausalLMObjective))
    gradients: dict[str, list[Tensor]] = {entry.name: [] for entry in scored}
    losses: list[float] = []
    recorder = GradientRecorder(model, modules, projections, measured)
    with recorder, progress(len(features), "Measuring queries", "queries") as bar:
        for numbers in _batches(features, batch_size):
            recording = recorder.record(collator([features[i] for i in numbers]), numbers)
            for name, gradient in recording.gradients.items():
                gradients[name].append(gradient.to("cpu", torch.float32))
            losses += recording.losses.tolist()
            bar.update(len(numbers))
    preconditioned = {}
    for entry in scored:
        stacked = torch.cat(gradients.pop(entry.name))
        if config.factorize_query:
            stacked = reconstruct(*factorize(stacked, config.factor_rank))
        eigenvectors, eigenvalues, damping, _ = reader.curvature(entry)
        solved = woodbury_solve(stacked.flatten(1), eigenvectors, eigenvalues, damping)
        preconditioned[entry.name] = solved.view_as(stacked)
    texts = [query_text(feature, processing_class) for feature in features]
    return MeasuredQueries(preconditioned, texts, losses)


def score_shards(
    measured: MeasuredQueries, reader: ShardReader, modules: Sequence[ModuleEntry], rows: Tensor | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Scores shard by shard: (rows scored before it, per module (Q, n)), nats per unit of example weight.

    Args:
        rows (`Tensor`, *optional*): row numbers to score, ascending; by default all.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: a stored factor is not finite.
    """
    total = sum(shard.rows for shard in reader.shards) if rows is None else len(rows)
    with progress(total, "Scoring", "examples") as bar:
        for position, shard, factors in reader.stream(modules, rows):
            scores = {}
            for name, (left, right) in factors.items():
                scores[name] = bilinear_scores(measured.preconditioned[name], left, right)
                if not bool(torch.isfinite(scores[name].sum())):
                    raise IndexCorruptedError(shard.file, f"the factors of '{name}' are not all finite numbers")
            del factors
            yield position, scores
            bar.update(next(iter(scores.values())).shape[1])


def select_modules(manifest: Manifest, pattern: str | Sequence[str] | None) -> list[ModuleEntry]:
    """The index's modules whose names match, as `target_modules` does.

    Raises:
        [`~lorif_hf.errors.QueryError`]: none does.
    """
    if pattern is None:
        return manifest.modules
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


def _projection(entry: ModuleEntry, config: InfluenceConfig) -> TwoSidedProjection:
    shapes = (entry.in_features, entry.out_features), (entry.d1, entry.d2)
    drawn = TwoSidedProjection.draw(*shapes, seed=config.seed, name=entry.name)
    if drawn.sha256() != entry.projection_sha256:
        raise ModelMismatchError(
            f"This machine draws another projection for module '{entry.name}' than the one the index was made with "
            f"(torch {torch.__version__}): its random numbers differ. Use the torch release that built the index."
        )
    return drawn


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
