"""One run of the ground truth: train on a subset, measure every query, write the losses."""

import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Subset

from ...errors import EvaluationError
from ...layers.modules import unwrap
from ...storage.files import is_intact, write_tensors
from ...tasks import Task, UserObjective, task_of
from ...tasks.base import losses_of
from ...tasks.collation import padding_collator
from ...tasks.query_forms import query_features


Feature = dict[str, Tensor]
MakeTrainer = Callable[[Any, int], Any]


@dataclass(frozen=True)
class RetrainJob:
    """All that the runs need; goes to worker processes as it is.

    Run r trains on subset r // k with seed r % k, where k is the number of seeds.

    Args:
        membership (`np.ndarray`): (M, N) booleans.
        seeds (`list[int]`): the k training seeds.
        features (`list[dict[str, Tensor]]`): the queries, as [`complete_features`] gives them.
        folder (`Path`): where the finished runs go.
        make_trainer, dataset, objective, processing_class, batch_size: as in
            [`~lorif_hf.evaluation.retraining.retrain.retrain`].
    """

    make_trainer: MakeTrainer
    dataset: Any
    membership: np.ndarray
    seeds: list[int]
    features: list[Feature]
    objective: UserObjective | Task | str | None
    processing_class: Any
    batch_size: int
    folder: Path

    @property
    def count(self) -> int:
        """Runs altogether, M k."""
        return len(self.membership) * len(self.seeds)

    def name(self, run: int) -> str:
        """A run as errors call it."""
        subset, seed = divmod(run, len(self.seeds))
        return f"Run {run + 1} of {self.count} (subset {subset}, seed {self.seeds[seed]})"

    def path(self, run: int) -> Path:
        """The file of a run's losses."""
        return self.folder / f"run-{run + 1:05d}-of-{self.count:05d}.safetensors"

    def finished(self, run: int) -> bool:
        """Whether the losses of a run are there, whole and undamaged."""
        return is_intact(self.path(run)) and self.losses(run).shape == (len(self.features),)

    def losses(self, run: int) -> Tensor:
        """The losses of a finished run, float64 (Q,), nats."""
        return load_file(self.path(run))["losses"]

    def trainer(self, run: int) -> Any:
        """The user's trainer for a run, made after all random numbers are seeded.

        Raises:
            [`~lorif_hf.errors.EvaluationError`]: it is no trainer, or does not train on the rows of the subset.
        """
        from transformers import set_seed

        subset, seed = divmod(run, len(self.seeds))
        rows = np.flatnonzero(self.membership[subset]).tolist()
        chosen = self.dataset.select(rows) if hasattr(self.dataset, "select") else Subset(self.dataset, rows)
        set_seed(self.seeds[seed])  # a model that make_trainer initialises or an adapter that it adds is the same
        trainer = self.make_trainer(chosen, self.seeds[seed])
        if not callable(getattr(trainer, "train", None)) or not isinstance(getattr(trainer, "model", None), nn.Module):
            raise EvaluationError(
                f"make_trainer must return a transformers.Trainer with a model, got {type(trainer).__name__}."
            )
        given: Any = getattr(trainer, "train_dataset", None)
        if hasattr(given, "__len__") and len(given) == len(self.dataset) != len(rows):
            raise EvaluationError(
                f"The trainer of make_trainer has all {len(given)} rows as its train_dataset, expected the "
                f"{len(rows)} it was given: pass the first argument of make_trainer on to the Trainer."
            )
        return trainer

    def run(self, run: int) -> None:
        """Train, measure the queries, write their losses.

        Raises:
            [`~lorif_hf.errors.EvaluationError`]: names the run; nothing is written.
        """
        try:
            trainer = self.trainer(run)
            trainer.train()
            losses = self._query_losses(unwrap(trainer.model))
        except EvaluationError as error:
            raise EvaluationError(f"{self.name(run)}: {error}") from error
        except Exception as error:  # whatever the user's training raises
            raise EvaluationError(
                f"{self.name(run)} failed with {type(error).__name__}: {error}. The finished runs are kept: call "
                "retrain() again with the same arguments to go on."
            ) from error
        bad = (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
        if bad:
            raise EvaluationError(
                f"{self.name(run)}: the loss of query {bad[0]} is {losses[bad[0]].item()}, expected a finite number: "
                "the training diverged. Lower the learning rate or clip the gradients, and start in a new folder."
            )
        write_tensors(self.path(run), {"losses": losses})
        # A Trainer and its callbacks hold one another, and the model with them.
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _query_losses(self, model: nn.Module) -> Tensor:
        """The losses of the queries under a model, float64 (Q,), nats."""
        task = task_of(model, self.objective)
        collator = padding_collator(model, self.processing_class, task.makes_labels)
        device = next(model.parameters()).device
        model.eval()
        losses = []
        size = 1 if task.alone else self.batch_size
        with torch.no_grad():
            for start in range(0, len(self.features), size):
                batch = collator(self.features[start : start + size])
                moved = {key: value.to(device) for key, value in batch.items()}
                losses.append(losses_of(task, model, moved).to("cpu", torch.float64))
        return torch.cat(losses)


def complete_features(queries: Any, model: nn.Module, task: Task, processing_class: Any) -> list[Feature]:
    """The queries as tensors that need no tokenizer and no default any more.

    Raises:
        [`~lorif_hf.errors.QueryError`]: a query cannot be read.
        [`~lorif_hf.errors.EvaluationError`]: a query has no fixed target, or other entries than the first one.
    """
    collator = padding_collator(model, processing_class, task.makes_labels)
    features: list[Feature] = []
    for number, feature in enumerate(query_features(queries, model, task, processing_class)):
        # Through a list, as a query that is read back from a file has it: one dtype for each kind of number.
        whole = {key: torch.as_tensor(value[0].tolist()) for key, value in collator([feature]).items()}
        if task.needs_labels and "labels" not in whole:
            raise EvaluationError(
                f"Query {number} has no label, and each retrained model may predict another: pass (text, label)."
            )
        if features and set(whole) != set(features[0]):
            raise EvaluationError(
                f"Query {number} has the entries {', '.join(sorted(whole))}, query 0 has "
                f"{', '.join(sorted(features[0]))}: give all queries the same ones."
            )
        features.append(whole)
    return features


def plain_features(features: Sequence[Feature]) -> list[dict[str, Any]]:
    """The queries as JSON values, which is what their fingerprint is made of."""
    return [{key: feature[key].tolist() for key in sorted(feature)} for feature in features]


def queries_fingerprint(features: Sequence[Feature]) -> str:
    """Hash over the queries as the model takes them, in their order."""
    return hashlib.sha256(json.dumps(plain_features(features)).encode()).hexdigest()
