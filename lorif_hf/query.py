"""Querying: measure the query's gradients, precondition them, score every stored example block by block."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .algebra.curvature import spectral_solve, woodbury_solve
from .algebra.factors import factorize, reconstruct
from .algebra.rangefinder import dense
from .config import InfluenceConfig
from .encoding import Encoder, checked_projection, stored_entries
from .errors import IndexCorruptedError, ModelMismatchError, ObjectiveError, QueryError
from .progress import progress
from .recording.collation import padding_collator
from .recording.identity import identify
from .recording.modules import TrackedModule, matches, modules_by_name, unwrap
from .recording.objectives import CausalLMObjective, MarginObjective, Objective, UserObjective, find_objective
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
    rows: Tensor | None = None,
) -> MeasuredQueries:
    """Gradients of the queries' losses in the `scored` modules, preconditioned with the index's curvature.

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
    projections = {entry.name: checked_projection(entry, config) for entry in recorded}
    whiteners = {entry.name: reader.whiteners(entry) for entry in recorded} if config.whitening != "none" else None
    encoder = Encoder(config, recorded, whiteners)
    collator = padding_collator(model, processing_class, make_labels=isinstance(measured, CausalLMObjective))
    gradients: dict[str, list[Tensor]] = {entry.name: [] for entry in scored}
    losses: list[float] = []
    function = MarginObjective(measured) if config.output == "margin" else measured
    recorder = GradientRecorder(model, modules, projections, function)
    with recorder, progress(len(features), "Measuring queries", "queries") as bar:
        for numbers in _batches(features, batch_size):
            recording = recorder.record(collator([features[i] for i in numbers]), numbers)
            encoded = encoder.encode(recording.gradients)
            for name, parts in gradients.items():
                parts.append(dense(encoded[name]).to("cpu"))
            losses += recording.losses.tolist()
            bar.update(len(numbers))
    preconditioned = {
        entry.name: _precondition(torch.cat(gradients.pop(entry.name)), entry, config, reader) for entry in scored
    }
    texts = [query_text(feature, processing_class) for feature in features]
    return MeasuredQueries(preconditioned, texts, losses)


def _precondition(gradients: Tensor, entry: ModuleEntry, config: InfluenceConfig, reader: ShardReader) -> Tensor:
    """Q~ = H^-1 G~_q of one layer, (Q, d1, d2); whitened gradients already are what the Kronecker curvature needs."""
    if config.factorize_query and config.factor_rank is not None:
        gradients = reconstruct(*factorize(gradients, config.factor_rank))
    if config.curvature != "low-rank":
        return gradients
    eigenvectors, eigenvalues, damping, _ = reader.eigenpairs(entry)
    solve = spectral_solve if config.curvature_rank is None else woodbury_solve
    return solve(gradients.flatten(1), eigenvectors, eigenvalues, damping).view_as(gradients)


def score_shards(
    measured: MeasuredQueries,
    reader: ShardReader,
    modules: Sequence[ModuleEntry],
    config: InfluenceConfig,
    rows: Tensor | None = None,
    weighted: bool = True,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Scores shard by shard: (rows scored before it, per module (Q, n)), nats per unit of example weight.

    Args:
        rows (`Tensor`, *optional*): row numbers to score, ascending; by default all.
        weighted (`bool`, *optional*, defaults to `True`): multiply by the examples' weights, where they have any.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: a stored factor is not finite.
    """
    total = sum(shard.rows for shard in reader.shards) if rows is None else len(rows)
    codec = config.codec()
    with progress(total, "Scoring", "examples") as bar:
        for position, shard, stored, chosen in reader.stream(modules, rows):
            scores = {}
            weights = reader.weights(shard, chosen) if weighted and config.output == "margin" else None
            for name, parts in stored.items():
                scores[name] = codec.scores(measured.preconditioned[name], parts)
                if not bool(torch.isfinite(scores[name].sum())):
                    raise IndexCorruptedError(shard.file, f"the factors of '{name}' are not all finite numbers")
                if weights is not None:
                    scores[name] *= weights
            del stored
            yield position, scores
            bar.update(next(iter(scores.values())).shape[1])


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
