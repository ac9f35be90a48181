"""Ground truth by retraining: models trained on random subsets of the data, and the queries' losses under each.

Source: Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186, section 2.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...checks import whole_number
from ...errors import EvaluationError
from ...layers.modules import parameter_shapes, unwrap
from ...progress import progress
from ...recording.identity import identify
from ...recording.rows import TrainingRows, task_code
from ...storage.claim import BuildFolder
from ...storage.layout import STAGING
from ...tasks import Task, UserObjective, task_of
from .bank import RetrainBank
from .bank_files import BANK, BANK_VERSION
from .runs import Feature, MakeTrainer, RetrainJob, complete_features, queries_fingerprint
from .workers import run_in_processes


logger = logging.getLogger(__name__)

_FOLDER = BuildFolder(
    finished=BANK,
    note="plan.json",
    error=EvaluationError,
    thing="a bank",
    stranger="holds no bank of retrained models",
    busy="Another process is retraining in {folder}: wait for it, or choose another folder.",
)
# What a Trainer's arguments say of the training itself, and not of logging, saving or hardware.
_TRAINING = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
)


def retrain(
    make_trainer: MakeTrainer,
    dataset: Any,
    queries: Any,
    path: str | os.PathLike[str],
    *,
    num_subsets: int = 50,
    fraction: float = 0.5,
    seeds: int = 2,
    seed: int = 0,
    num_processes: int = 1,
    batch_size: int = 32,
    objective: UserObjective | Task | str | None = None,
    processing_class: Any = None,
) -> RetrainBank:
    """Train on M random subsets of the data, each with k seeds, and measure every query under each model.

    Each finished run is kept: after a crash, call it again with the same arguments to go on. A finished bank is loaded
    and returned.

    Args:
        make_trainer (`Callable`): `(train_dataset, seed) -> transformers.Trainer`, ready to train a *new* model on
            these rows. Let it save no checkpoints (`save_strategy="no"`). All random numbers are seeded before it is
            called; pass `seed` on to `TrainingArguments`, which seed anew.
        dataset: the training set, of N rows, in the order of the index.
        queries: in any form that [`InfluenceIndex.attribute`] takes; Q of them.
        path (`str` or `os.PathLike`): folder of the bank; absent, empty, or holding this very bank, unfinished or not.
        num_subsets (`int`, *optional*, defaults to 50): M; at least 2.
        fraction (`float`, *optional*, defaults to 0.5): of the N rows that are in each subset, rounded to whole rows,
            drawn without replacement.
        seeds (`int`, *optional*, defaults to 2): k trainings per subset, with seeds `seed` to `seed + k - 1`. The mean
            of their losses is the ground truth; their agreement says how exact that is.
        seed (`int`, *optional*, defaults to 0): of the subsets and the trainings.
        num_processes (`int`, *optional*, defaults to 1): runs at once, each in a process of its own, with its share of
            the cores and one of the CUDA devices. `make_trainer` must then be a function at the top level of a module.
        batch_size (`int`, *optional*, defaults to 32): queries per forward pass; changes the losses by rounding.
        objective (`Callable`, *optional*): `(model, batch) -> (Q,)` losses in nats; by default that of the model's
            task, summed over each query's tokens.
        processing_class (*optional*): tokenizer for text queries.

    Returns:
        [`~lorif_hf.evaluation.retraining.bank.RetrainBank`].

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: settings that make no bank, a folder that holds another one, or a run
            that failed, which is named.
        [`~lorif_hf.errors.DatasetError`], [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ObjectiveError`]: before
            anything is trained.

    Example:

    ```python
    >>> def make_trainer(subset, seed):
    ...     args = TrainingArguments("out", seed=seed, num_train_epochs=3)
    ...     return Trainer(AutoModelForCausalLM.from_pretrained("gpt2"), args, train_dataset=subset)
    >>> bank = retrain(make_trainer, dataset, queries, "bank", num_subsets=50, seeds=2)
    ```
    """
    folder = Path(path)
    whole_number(num_subsets, "num_subsets", 2, EvaluationError)
    whole_number(seed, "seed", 0, EvaluationError)
    for name, value in (("seeds", seeds), ("num_processes", num_processes), ("batch_size", batch_size)):
        whole_number(value, name, 1, EvaluationError)
    _FOLDER.check(folder)
    if not hasattr(dataset, "__len__"):
        raise EvaluationError(
            f"A {type(dataset).__name__} has no length, so no subset of it can be drawn: load it as a map-style "
            "dataset."
        )
    membership, staging = draw_subsets(len(dataset), num_subsets, fraction, seed), folder / STAGING
    training_seeds = list(range(seed, seed + seeds))
    job = RetrainJob(
        make_trainer, dataset, membership, training_seeds, [], objective, processing_class, batch_size, staging
    )
    plan, features = _plan(job, queries)
    job = replace(job, features=features)
    plan = json.loads(json.dumps(plan | {"fraction": fraction, "seed": seed}))
    if not (folder / BANK).exists():
        with _FOLDER.claimed(folder, plan, lambda begun: _different(plan, begun)):
            _run_missing(job, num_processes)
            losses = torch.stack([job.losses(run) for run in range(job.count)])
            by_seed = losses.view(num_subsets, seeds, len(features)).transpose(0, 1).contiguous()
            RetrainBank(torch.from_numpy(membership), by_seed, features, plan).save_pretrained(folder)
    bank = RetrainBank.from_pretrained(folder)
    if held := _different(plan, bank.info):
        raise EvaluationError(f"{folder} holds {held}")
    shutil.rmtree(staging, ignore_errors=True)
    return bank


def draw_subsets(count: int, num_subsets: int, fraction: float, seed: int) -> np.ndarray:
    """Which rows are in which subset, booleans (M, N). With more subsets the first ones stay the same.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: a subset would hold no row or all of them.
    """
    size = round(fraction * count) if isinstance(fraction, (int, float)) and 0 < fraction < 1 else 0
    if not 0 < size < count:
        raise EvaluationError(
            f"fraction={fraction!r} of {count} rows makes subsets of {size} rows; expected at least 1 and at most "
            f"{count - 1}, so that models can differ. Take a fraction between 0 and 1 (0.5, say), and more rows."
        )
    generator = torch.Generator().manual_seed(seed)
    membership = np.zeros((num_subsets, count), dtype=bool)
    for members in membership:
        members[torch.randperm(count, generator=generator)[:size].numpy()] = True
    return membership


def _plan(job: RetrainJob, queries: Any) -> tuple[dict[str, Any], list[Feature]]:
    """All that the runs depend on, and the queries; from a trainer of the first run that is not trained."""
    trainer, membership = job.trainer(0), job.membership
    model = unwrap(trainer.model)
    task = task_of(model, job.objective)
    features = complete_features(queries, model, task, job.processing_class)
    identity = identify(model, [])
    plan = {
        "format_version": BANK_VERSION,
        "num_examples": membership.shape[1],
        "num_queries": len(features),
        "num_subsets": len(membership),
        "subset_size": int(membership[0].sum()),
        "seeds": job.seeds,
        "objective": {"name": task.name, "code": task_code(task)},
        "dataset": TrainingRows(job.dataset, model, task, job.processing_class).source(),
        "queries": queries_fingerprint(features),
        "subsets": hashlib.sha256(np.packbits(membership, axis=1).tobytes()).hexdigest(),
        "model": {
            "model_class": identity.model_class,
            "name": identity.name,
            "commit": identity.commit,
            "initial_weights": identity.other_weights,
            "parameters": parameter_shapes(model),
        },
        "training": _training(trainer),
    }
    return plan, features


def _training(trainer: Any) -> dict[str, Any]:
    """The settings of the training that a Trainer's arguments hold."""
    values = {name: getattr(getattr(trainer, "args", None), name, None) for name in _TRAINING}
    values = {name: getattr(value, "value", value) for name, value in values.items()}  # of enumerations
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


def _run_missing(job: RetrainJob, num_processes: int) -> None:
    """Do the runs that are not finished yet."""
    missing = [run for run in range(job.count) if not job.finished(run)]
    done = job.count - len(missing)
    if done:
        logger.info("Going on with %d of %d runs already finished in %s.", done, job.count, job.folder)
    with progress(job.count, "Retraining", "runs", initial=done) as bar:
        if num_processes == 1:
            for run in missing:
                job.run(run)
                bar.update()
        elif missing:
            run_in_processes(job, missing, num_processes, bar.update)


def _different(plan: dict[str, Any], begun: dict[str, Any]) -> str | None:
    """What a folder holds whose bank was begun with another plan; `None` where the runs of this plan fit into it."""
    names = [name for name in plan if name != "dataset" and plan[name] != begun.get(name)]
    # A name or a licence may change where the rows do not.
    if plan["dataset"]["fingerprint"] != begun.get("dataset", {}).get("fingerprint"):
        names.append("dataset")
    if not names:
        return None
    return (
        f"a bank of other settings: {', '.join(sorted(names))} differ(s). Choose another folder, or call retrain() "
        "with the same arguments as before."
    )
