"""Scores of one training set under several models: the checkpoints of a training, or trainings of their own."""

import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .building.checkpoint_weights import CheckpointWeights
from .building.checkpoints import Checkpoint, Folders, find_checkpoints, tracin_weights
from .building.replacing import beside
from .errors import BuildFolderError, CheckpointError, ConfigError, QueryError
from .index import InfluenceIndex
from .querying.answers import AllScores, BestRows, best_of
from .querying.options import QueryOptions
from .reports.answering import AnswerOptions, attribution_of, check_layers, layers_of, shown_rows
from .reports.attribution import Attribution
from .storage.claim import INDEX_FOLDER
from .storage.ensemble_manifest import ENSEMBLE, Member, member_of, read_ensemble, write_ensemble


Models = nn.Module | Callable[[str], nn.Module] | None
"""A model into which each checkpoint is loaded; a function that loads a checkpoint's folder; or, to query with,
`None`: the Auto class that the index names loads it."""


class InfluenceEnsemble:
    """Indices of several checkpoints of one training, scored as their weighted sum (TracIn).

    A query's gradient is taken under each checkpoint, and scored against the gradients that the rows have there:
    sum over checkpoints t of w_t s_t(q, i), with the learning rates of the run as weights
    ([`~lorif_hf.building.checkpoints.tracin_weights`]) or your own (equal ones average the checkpoints, as SOURCE and
    TRAK do). Sign and unit are those of an index, times that of the weights.

    The folder holds an index for each checkpoint, which is loaded, verified and pushed as any other
    (`ensemble.indices[0].push_to_hub(...)`), and `influence_ensemble.json`.

    Attributes:
        path (`Path`): the folder.
        indices (`list[InfluenceIndex]`): one for each checkpoint.
        weights (`list[float]`): what each counts for.
        steps (`list[int | None]`): the training step of each checkpoint, where known.

    Source: TracIn (Pruthi et al. 2020, arXiv:2002.08484), TracInCP.

    Example:

    ```python
    >>> ensemble = InfluenceIndex.build_over(model, "out", dataset, "my-ensemble")
    >>> ensemble.attribute(model, "The capital of France is Paris", top_k=5).to_pandas()
    ```
    """

    def __init__(
        self,
        path: Path,
        members: Sequence[Member],
        indices: Sequence[InfluenceIndex],
        checkpoints: Sequence[Checkpoint] | None = None,
    ):
        self.path, self.indices = path, list(indices)
        self.weights = [member.weight for member in members]
        self.steps = [member.step for member in members]
        self._checkpoints = None if checkpoints is None else list(checkpoints)
        _check_rows(self.indices)

    @classmethod
    def build(
        cls,
        model: nn.Module | Callable[[str], nn.Module],
        checkpoints: Folders,
        dataset: Any,
        path: str | os.PathLike[str],
        *,
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> "InfluenceEnsemble":
        """Record every row of `dataset` under each checkpoint of a training.

        A build that was interrupted goes on when called again: a checkpoint whose index is finished is not recorded
        again.

        Args:
            model (`nn.Module` or `Callable`): the model, with the PEFT adapter where one was trained: each
                checkpoint is loaded into it, so that one model is in memory, and its own weights are back afterwards
                to the last bit, also after an error. Or a function that loads a checkpoint's folder, such as
                `AutoModelForCausalLM.from_pretrained`.
            checkpoints (`str`, `os.PathLike` or a list of these): the `output_dir` of the training, or folders.
            dataset: as in [`InfluenceIndex.build`].
            path (`str` or `os.PathLike`): folder of the ensemble; absent, empty, or holding this build.
            weights (`Sequence[float]`, *optional*): what each checkpoint counts for, in the order of `checkpoints`
                where these are a list, else of their steps. By default the learning rates of the run.
            options: the other arguments of [`InfluenceIndex.build`].

        Raises:
            [`~lorif_hf.errors.CheckpointError`]: a folder holds no weights, or others than the model's; or nothing is
            known of the learning rates.
            [`~lorif_hf.errors.LorifError`]: as for an index.

        Example: `>>> ensemble = InfluenceEnsemble.build(model, "out", dataset, "my-ensemble", batch_size=16)`
        """
        folder = Path(path)
        found, weighed = _weighed(checkpoints, weights)
        pushes = sorted({"push_to_hub", "repo_id", "private", "token"} & options.keys())
        if pushes:
            raise ConfigError(
                f"{pushes[0]} is for one index: push each afterwards, ensemble.indices[0].push_to_hub()."
            )
        names = _names(found)
        _check_folder(folder, names)
        if options.get("overwrite") and (folder / ENSEMBLE).exists():
            raise BuildFolderError(
                f"{folder} holds an ensemble, which overwrite=True would make half old and half new meanwhile: choose "
                "another folder, or delete this one."
            )
        if model is None or not callable(model):
            raise ConfigError("build needs the model, or a function that loads a checkpoint's folder.")
        indices: list[InfluenceIndex] = []
        with closing(_loaded(model, found)) as models:
            for loaded in models:
                indices.append(InfluenceIndex.build(loaded, dataset, folder / names[len(indices)], **options))
                del loaded  # before the next is loaded
        members = [
            member_of(folder, name, weight, checkpoint.step)
            for name, weight, checkpoint in zip(names, weighed, found, strict=True)
        ]
        if not (folder / ENSEMBLE).exists() or read_ensemble(folder) != members:
            write_ensemble(folder, members)
        return cls(folder, members, indices, found)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], checkpoints: Folders | None = None) -> "InfluenceEnsemble":
        """Load an ensemble from a folder.

        Args:
            path (`str` or `os.PathLike`): the folder.
            checkpoints (*optional*): where the checkpoints are, as in [`~InfluenceEnsemble.build`]. A query needs
                them; the folder does not say where they were.

        Raises:
            [`~lorif_hf.errors.IndexFormatError`], [`~lorif_hf.errors.IndexCorruptedError`]: it is no ensemble, or not
            as it was written.
            [`~lorif_hf.errors.CheckpointError`]: these are other checkpoints.

        Example: `>>> ensemble = InfluenceEnsemble.from_pretrained("my-ensemble", checkpoints="out")`
        """
        folder = Path(path)
        members = read_ensemble(folder)
        found = None if checkpoints is None else find_checkpoints(checkpoints)
        steps = [member.step for member in members]
        if found is not None and [checkpoint.step for checkpoint in found] != steps:
            raise CheckpointError(
                f"The ensemble is of the checkpoints of steps {', '.join(map(str, steps))}; given are those of steps "
                f"{', '.join(str(checkpoint.step) for checkpoint in found)}."
            )
        return cls(folder, members, [InfluenceIndex.from_pretrained(folder / m.folder) for m in members], found)

    def __len__(self) -> int:
        return len(self.indices[0])

    def __repr__(self) -> str:
        return f"InfluenceEnsemble({str(self.path)!r}, num_examples={len(self)}, checkpoints={len(self.indices)})"

    def attribute(
        self,
        model: Models,
        query: Any,
        top_k: int = 10,
        *,
        opponents: int = 0,
        fold_duplicates: bool = False,
        by_layer: bool = False,
        largest: bool = True,
        **options: Any,
    ) -> Attribution:
        """The training examples that made the model say this, ranked by the weighted sum.

        Args:
            model (`nn.Module`, `Callable` or `None`): as in [`~InfluenceEnsemble.build`]; `None`: each checkpoint is
                loaded by its folder, with the class that the index names.
            query, top_k, opponents, fold_duplicates, by_layer, largest, options: as in [`InfluenceIndex.attribute`];
                the shares of tokens (`shade`) are to be had of a single index alone, one of `indices`.

        Returns:
            [`Attribution`]: as of an index; the losses of the queries and the columns of the examples are those under
            the last checkpoint.

        Example: `>>> ensemble.attribute(None, ("The capital of France is", " Paris"), top_k=5).to_pandas()`
        """
        shown = AnswerOptions(top_k, largest, opponents, fold_duplicates, by_layer)
        ranker = _EnsembleRanker(self, model, query, largest, options)
        check_layers(ranker.asked, shown)
        rows = shown_rows(ranker, self.indices[-1].examples, shown)
        beside = {"layers": ranker.layers, "layer_scores": layers_of(ranker, rows)} if by_layer else {}
        provenance = replace(self.indices[-1]._provenance(), index=self.path.resolve().name)
        return attribution_of(ranker.asked, rows, provenance, **beside)

    def scores(self, model: Models, queries: Any, **options: Any) -> Any:
        """Every score, dense: the arguments and the shape are those of [`InfluenceIndex.scores`]; `model` is as in
        [`~InfluenceEnsemble.attribute`].

        Example: `>>> ensemble.scores(model, ["a query", "another"]).shape`
        """
        return _summed(self.indices, self._models(model), self.weights, queries, **options)[0]

    def self_influence(self) -> Tensor:
        """Each example's influence on its own loss over the checkpoints, float64 (N,): the weighted sum.

        Example: `>>> ensemble.self_influence().topk(10).indices`
        """
        parts = [weight * index.self_influence() for weight, index in zip(self.weights, self.indices, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def verify(self) -> None:
        """Read every file anew and check it, as [`InfluenceIndex.verify`] does.

        Example: `>>> ensemble.verify()`
        """
        read_ensemble(self.path)
        for index in self.indices:
            index.verify()

    def _models(self, model: Models) -> Generator[Any, None, None]:
        if self._checkpoints is None:
            raise CheckpointError(
                "A query is measured under each checkpoint, and the ensemble does not know where they are: "
                "InfluenceEnsemble.from_pretrained(path, checkpoints=the output_dir of the training)."
            )
        return _loaded(model, self._checkpoints)


class _EnsembleRanker:
    """Ranks the rows by the weighted sum, which is made once."""

    def __init__(
        self, ensemble: InfluenceEnsemble, model: Models, query: Any, largest: bool, options: Mapping[str, Any]
    ):
        self.ensemble, self.largest = ensemble, largest
        self._question = model, query, options
        self._dense, measured = _summed(ensemble.indices, ensemble._models(model), ensemble.weights, query, **options)
        self.asked, self._losses = measured.asked, measured.losses
        self.layers: list[str] = []

    def best(self, k: int, opponents: int = 0) -> BestRows:
        ranked = best_of(self._dense, k, self.largest, self.asked.tokens, opponents)
        return replace(ranked, losses=self._losses)

    def layer_scores(self, rows: Tensor) -> Tensor:
        """Each checkpoint is asked once more, about these rows alone."""
        model, query, options = self._question
        selected = [index.select(rows.tolist()) for index in self.ensemble.indices]
        models, weights = self.ensemble._models(model), self.ensemble.weights
        by_layer, _ = _summed(selected, models, weights, query, per_module=True, **options)
        self.layers = list(by_layer)
        return torch.stack(list(by_layer.values()))


def ensemble_scores(
    indices: Sequence[InfluenceIndex], models: Sequence[nn.Module | str], queries: Any, **options: Any
) -> Any:
    """Scores of the same training set under several models, each with an index of its own.

    The products and the examples' weights are averaged apart and multiplied at the end.

    Args:
        indices (`Sequence[InfluenceIndex]`): one for each model, all of the same rows.
        models (`Sequence`): the models, in the same order.
        queries: as in [`InfluenceIndex.attribute`].
        options: the other arguments of [`InfluenceIndex.scores`].

    Returns:
        `Tensor`: float32 (Q, N). Positive: a proponent.

    Raises:
        [`~lorif_hf.errors.QueryError`]: another number of models than of indices, or indices of other rows.

    Source: TRAK (Park et al. 2023, arXiv:2303.14186), the ensembled estimator.

    Example: `>>> ensemble_scores(indices, ["run-1", "run-2"], "The capital of France is Paris").shape`
    """
    if not indices or len(indices) != len(models):
        raise QueryError(f"Each index needs its model: got {len(indices)} indices and {len(models)} models.")
    _check_rows(indices)
    return _summed(indices, models, [1 / len(indices)] * len(indices), queries, **options)[0]


def _summed(
    indices: Sequence[InfluenceIndex],
    models: Iterable[Any],
    weights: Sequence[float],
    queries: Any,
    per_module: bool = False,
    weighted: bool = True,
    **options: Any,
) -> tuple[Any, AllScores]:
    """The weighted sum of the scores under each model, times the mean of the examples' weights; and the queries as
    they were measured under the last model."""
    chosen = QueryOptions(**options)
    total: dict[str, Tensor] = {}
    measured: AllScores | None = None
    remaining = iter(zip(indices, weights, strict=True))
    with closing(_each(models)) as each:
        for model in each:
            index, weight = next(remaining)
            measured = index._dense(model, queries, chosen, per_module, weighted=False)
            scores = measured.scores
            del model  # before the next is loaded
            for name, part in (scores if per_module else {"": scores}).items():
                total[name] = part.mul_(weight) if name not in total else total[name].add_(part, alpha=weight)
    if measured is None:
        raise QueryError("There is no index to score with.")
    if weighted:
        counted = torch.stack([index.example_weights() for index in indices]).mean(dim=0)
        total = {name: part.mul_(counted) for name, part in total.items()}
    return (total if per_module else total[""]), measured


def _each(models: Iterable[Any]) -> Generator[Any, None, None]:
    yield from models


def _loaded(model: Models, checkpoints: Sequence[Checkpoint]) -> Generator[Any, None, None]:
    """The model under each checkpoint in turn. Its own weights are back once this is closed."""
    if isinstance(model, nn.Module):
        with CheckpointWeights(model) as weights:
            for checkpoint in checkpoints:
                weights.load(checkpoint.folder)
                yield model
        return
    if model is not None and not callable(model):
        raise QueryError(
            f"The model is a {type(model).__name__}: pass the model itself, a function that loads a checkpoint's "
            "folder, or None."
        )
    for checkpoint in checkpoints:
        yield str(checkpoint.folder) if model is None else model(str(checkpoint.folder))


def _weighed(folders: Folders, weights: Sequence[float] | None) -> tuple[list[Checkpoint], list[float]]:
    """The checkpoints in order, and what each counts for."""
    found = find_checkpoints(folders)
    if weights is None:
        return found, tracin_weights(found)
    if isinstance(folders, (str, os.PathLike)):
        given = found
    else:
        given = [checkpoint for folder in folders for checkpoint in find_checkpoints(folder)]
    weighed = [float(weight) for weight in weights]
    if len(weighed) != len(found) or not all(map(math.isfinite, weighed)):
        raise CheckpointError(
            f"weights must be {len(found)} finite numbers, one for each checkpoint, got {list(weights)!r}."
        )
    return found, [weighed[given.index(checkpoint)] for checkpoint in found]


def _names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A name for the index of each checkpoint."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    if None in steps or len(set(steps)) < len(steps):
        return [f"model-{number:04d}" for number in range(1, len(steps) + 1)]
    return [f"checkpoint-{step}" for step in steps]


def _check_folder(folder: Path, names: Sequence[str]) -> None:
    """See that nothing else lies where the ensemble goes."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BuildFolderError(f"{folder} is a file; an ensemble needs a folder.")
    known = {*names, *(beside(folder / name).name for name in names), ENSEMBLE}
    strange = [path.name for path in folder.iterdir() if path.name not in known and path.suffix != ".tmp"]
    if strange:
        raise BuildFolderError(
            f"{folder} holds {sorted(strange)[0]}, which is no part of an ensemble of these checkpoints. Choose "
            "another folder."
        )
    for name in names:
        INDEX_FOLDER.check(folder / name)


def _check_rows(indices: Sequence[InfluenceIndex]) -> None:
    rows = [(len(index), index.manifest.dataset.get("fingerprint")) for index in indices]
    if len(set(rows)) > 1:
        raise QueryError("The indices are of other rows: an ensemble is of one training set under several models.")
