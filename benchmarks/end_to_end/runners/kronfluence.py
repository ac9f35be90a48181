"""kronfluence's EK-FAC: the build fits and stores the factors; a query computes every training gradient anew.

All training rows fit the factors, with their true labels. All queries form one batch, so that the training set is
passed through once.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import Dataset

from ..measuring import Bed, run, summed_loss, tracked


class Rows(Dataset):
    """Token rows as a map-style dataset."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.rows[row]


class SummedLoss(Task):
    """Token-summed cross-entropy for training rows and queries."""

    def __init__(self, names: list[str]):
        self.names = names

    def compute_train_loss(self, batch: torch.Tensor, model: nn.Module, sample: bool = False) -> torch.Tensor:
        return summed_loss(model, batch)

    def compute_measurement(self, batch: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return summed_loss(model, batch)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.names


def _analyzer(model: nn.Module, store: Path) -> Analyzer:
    task = SummedLoss(tracked(model))
    return Analyzer("bed", prepare_model(model, task), task, cpu=True, disable_tqdm=True, output_dir=str(store))


def build(bed: Bed, model: Any, store: Path, variant: str) -> dict[str, Any]:
    analyzer = _analyzer(model, store)
    arguments = FactorArguments(
        strategy="ekfac", use_empirical_fisher=True, covariance_max_examples=None, lambda_max_examples=None
    )
    analyzer.fit_all_factors(
        "ekfac",
        Rows(bed.rows("train")),
        per_device_batch_size=bed.batch_size,
        factor_args=arguments,
        overwrite_output_dir=True,
    )
    return {"modules": len(analyzer.task.get_influence_tracked_modules())}


def open_index(bed: Bed, model: Any, store: Path, variant: str) -> tuple[Any, ...]:
    return _analyzer(model, store), Rows(bed.rows("train")), bed.batch_size, store


def query(opened: tuple[Any, ...], rows: torch.Tensor) -> torch.Tensor:
    analyzer, train, batch_size, store = opened
    analyzer.compute_pairwise_scores(
        "scores",
        "ekfac",
        query_dataset=Rows(rows),
        train_dataset=train,
        per_device_query_batch_size=len(rows),
        per_device_train_batch_size=batch_size,
        score_args=ScoreArguments(),
        overwrite_output_dir=True,
    )
    scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    for folder in store.rglob("scores_scores"):
        shutil.rmtree(folder)
    return scores


if __name__ == "__main__":
    run(build, open_index, query, fixed=("bed",))
