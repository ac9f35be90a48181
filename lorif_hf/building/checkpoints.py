"""The checkpoints of a training, as a Trainer leaves them, and what each counts for."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError


WHOLE, SHARDED, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"

_STATE = "trainer_state.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
_LARGEST = 1 << 28  # bytes of JSON

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder with `checkpoint-*` folders in it (a Trainer's `output_dir`), a checkpoint itself, or a list of these."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a model's weights, or an adapter's.

    Args:
        folder (`Path`): the folder.
        step (`int`, *optional*): how many steps the training had gone, where it says so.
    """

    folder: Path
    step: int | None

    def learning_rates(self) -> tuple[list[int], list[float]]:
        """The steps whose learning rate was logged, ascending, and these rates.

        Raises:
            [`~lorif_hf.errors.CheckpointError`]: there is none.
        """
        log = _state(self.folder).get("log_history")
        rates: dict[int, float] = {}
        for entry in log if isinstance(log, list) else []:
            step, rate = (entry.get("step"), entry.get("learning_rate")) if isinstance(entry, dict) else (None, None)
            if type(step) is int and isinstance(rate, (int, float)) and math.isfinite(rate):
                rates[step] = float(rate)
        if not rates:
            raise CheckpointError(
                f"{self.folder / _STATE} knows no learning rate (nothing was logged before the checkpoint, or it is "
                "not there): pass weights=, what each checkpoint counts for."
            )
        return sorted(rates), [rates[step] for step in sorted(rates)]


def find_checkpoints(folders: Folders) -> list[Checkpoint]:
    """The checkpoints in folders, in the order of their steps where all of them have one, else as they were given.

    Raises:
        [`~lorif_hf.errors.CheckpointError`]: a folder holds none.
    """
    given = [folders] if isinstance(folders, (str, os.PathLike)) else list(folders)
    found = [checkpoint for folder in given for checkpoint in _in_folder(Path(folder))]
    if not found:
        raise CheckpointError("No checkpoints were given: pass the output_dir of the training, or a list of folders.")
    if len({checkpoint.folder.resolve() for checkpoint in found}) < len(found):
        raise CheckpointError("A checkpoint was given twice: each counts once.")
    steps = [checkpoint.step for checkpoint in found]
    if None in steps or len(set(steps)) < len(steps):
        return found
    return sorted(found, key=lambda checkpoint: checkpoint.step or 0)


def tracin_weights(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """What each checkpoint of a training counts for: the learning rates of the steps that led to it.

    A checkpoint stands for the steps since the one before. Its weight is the sum of their learning rates, in units of
    the average number of steps between checkpoints: where they are evenly spaced it is the mean learning rate of the
    interval, TracIn's eta; a last checkpoint after a shorter interval counts for less. Between the steps at which the
    rate was logged it is interpolated.

    Raises:
        [`~lorif_hf.errors.CheckpointError`]: a step or all learning rates are unknown, or two checkpoints are of the
            same step.

    Source: TracIn (Pruthi et al. 2020, arXiv:2002.08484), section 3.3 (TracInCP).
    """
    weights, before = [], 0
    for number, checkpoint in enumerate(checkpoints):
        step = checkpoint.step
        if step is None or (step <= before and number):
            what = "says no step" if step is None else f"is of step {step}, as is another or a later one"
            raise CheckpointError(
                f"{checkpoint.folder} {what}: these are not the checkpoints of one training. Pass weights=, what each "
                "counts for."
            )
        logged, rates = checkpoint.learning_rates()
        weights.append(float(np.interp(np.arange(before + 1, step + 1), logged, rates).sum()))
        before = step
    interval = before / len(weights)
    return [weight / interval for weight in weights]


def _in_folder(folder: Path) -> list[Checkpoint]:
    inner = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    checkpoints = [Checkpoint(path, _step(path)) for path in inner if _holds_weights(path)]
    if checkpoints:
        return sorted(checkpoints, key=lambda checkpoint: (checkpoint.step or 0, checkpoint.folder.name))
    if _holds_weights(folder):
        return [Checkpoint(folder, _step(folder))]
    pickles = [path / name for path in (*inner, folder) for name in _PICKLES if (path / name).exists()]
    if pickles:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which is never read here: save checkpoints as safetensors "
            "(model.save_pretrained does)."
        )
    what = "holds no checkpoint" if folder.is_dir() else "is no folder"
    raise CheckpointError(
        f"{folder} {what}: expected {WHOLE}, {SHARDED} or {ADAPTER} in it or in checkpoint-* folders of it."
    )


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WHOLE, SHARDED, ADAPTER)) or any(folder.glob(f"*/{ADAPTER}"))


def _step(folder: Path) -> int | None:
    step = _state(folder).get("global_step")
    if type(step) is int and step >= 0:
        return step
    named = re.fullmatch(r"checkpoint-(\d{1,15})", folder.name)
    return int(named[1]) if named else None


def _state(folder: Path) -> dict[str, Any]:
    """What the Trainer noted with a checkpoint; empty where there is nothing."""
    path = folder / _STATE
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} has over {_LARGEST:,} bytes: no Trainer writes that.")
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    return values if isinstance(values, dict) else {}
