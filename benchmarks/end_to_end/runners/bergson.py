"""bergson: `build` stores gradients of every layer projected on both sides to bed.rank, `hessian` their covariance.

The covariance ("autocorrelation", at its default damping) takes a pass of its own over the training rows, as in its
trackstar recipe. `Attributor` loads the store into memory when it is made; its time is that of opening. Queries are
traced in batches, each ranking all rows. Both passes load the model from its folder; that is counted.
"""

from pathlib import Path
from typing import Any

import torch
from bergson import Attributor, DataConfig, IndexConfig, PreprocessConfig
from bergson.build import build as build_gradients
from bergson.config.config import HessianConfig
from bergson.hessians.hessian_approximations import approximate_hessians
from datasets import Dataset

from ..measuring import Bed, run, summed_loss


def _config(bed: Bed, path: Path) -> IndexConfig:
    return IndexConfig(
        run_path=str(path),
        model=str(bed.model_folder),
        data=DataConfig(dataset=str(bed.folder / "rows")),
        precision="fp32",
        projection_dim=bed.rank,
        token_batch_size=bed.batch_size * bed.settings["block"],
    )


def build(bed: Bed, model: Any, store: Path, variant: str) -> dict[str, Any]:
    if not (bed.folder / "rows").exists():  # the same rows again, as a dataset: no part of the store
        ids = bed.rows("train").tolist()
        Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]}).save_to_disk(bed.folder / "rows")
    build_gradients(_config(bed, store / "gradients"), PreprocessConfig())
    approximate_hessians(_config(bed, store / "hessian"), HessianConfig(method="autocorrelation"))
    return {}


def open_index(bed: Bed, model: Any, store: Path, variant: str) -> tuple[Any, ...]:
    attributor = Attributor(store / "gradients", hessian_path=store / "hessian")
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # as in its own passes: the graph starts here
    return attributor, model, bed.batch_size


def query(opened: tuple[Any, ...], rows: torch.Tensor) -> torch.Tensor:
    attributor, model, batch_size = opened
    scores = torch.empty(len(rows), attributor.N)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        with attributor.trace(model.base_model, None) as trace:
            summed_loss(model, batch).backward()
            model.zero_grad()
        scores[start : start + batch_size] = torch.empty_like(trace.scores).scatter_(1, trace.indices, trace.scores)
    return scores


if __name__ == "__main__":
    run(build, open_index, query, fixed=("hessian",))
