"""lorif-hf: build, then `InfluenceIndex.from_pretrained` and `scores`. The variant names the config."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from lorif_hf import InfluenceConfig, InfluenceIndex

from ..measuring import Bed, run


def config(variant: str, factor: int) -> InfluenceConfig:
    """The config of a row of the table."""
    return {
        "paper": lambda: InfluenceConfig.paper(projection_factor=factor),
        "default": InfluenceConfig,
        "default-f": lambda: InfluenceConfig(projection_factor=factor),
        "logra": lambda: InfluenceConfig.logra(projection_factor=factor),
    }[variant]()


def _dataset(rows: torch.Tensor) -> Dataset:
    ids = rows.tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def build(bed: Bed, model: Any, store: Path, variant: str) -> dict[str, Any]:
    chosen = config(variant, bed.settings["projection_factor"])
    index = InfluenceIndex.build(model, _dataset(bed.rows("train")), store, config=chosen, batch_size=bed.batch_size)
    return {"config": chosen.to_dict(), "modules": len(index.manifest.modules)}


def open_index(bed: Bed, model: Any, store: Path, variant: str) -> tuple[Any, ...]:
    return InfluenceIndex.from_pretrained(store), model, bed.batch_size


def query(opened: tuple[Any, ...], rows: torch.Tensor) -> torch.Tensor:
    index, model, batch_size = opened
    # Rows as dattri's DataLoader has them. A Dataset would be hashed first, for half of what one query takes.
    return index.scores(model, [{"input_ids": row, "labels": row} for row in rows], batch_size=batch_size)


if __name__ == "__main__":
    run(build, open_index, query, fixed=("curvature", "influence_config.json", "README.md"))
