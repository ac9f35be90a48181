"""dattri-llm: gradients captured live by its hooks on the LoRA matrices, then scored.

Variants: `dot` (TracIn at the last checkpoint), `cos`, `kfac`, `ekfac`; the last two at its default damping, or with
`-relative` at 0.1 of the mean eigenvalue. Bytes per row are those of the gradients that its store holds on disk, which
this live way does not need.
"""

import time
from pathlib import Path
from typing import Any

import torch
from dattri_llm import (
    AttributionArguments,
    AttributionTask,
    EKFACAttributor,
    HookManagerConfig,
    KFACAttributor,
    TracInAttributor,
)

from . import adapters, rows, run, summed_loss


KINDS = {"dot": TracInAttributor, "cos": TracInAttributor, "kfac": KFACAttributor, "ekfac": EKFACAttributor}


def score(bed: Path, out: Path, variant: str) -> tuple[torch.Tensor, dict[str, Any]]:
    start = time.perf_counter()
    name, _, relative = variant.partition("-")
    options: dict[str, Any] = {"normalized_grad": True} if name == "cos" else {}
    if relative:
        options = {"damping": 0.1, "relative_damping": True}
    arguments = AttributionArguments(
        output_dir=str(out / "dattri"),
        per_device_train_batch_size=20,
        per_device_eval_batch_size=20,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    task = AttributionTask(lambda model, batch: summed_loss(model, batch["input_ids"]), adapters(bed))
    train, queries = ([{"input_ids": row} for row in rows(bed, part)] for part in ("train", "queries"))
    hooks = HookManagerConfig(linear_io=[r"lora_[AB]\."])
    attributor = KINDS[name](arguments, task=task)
    result = attributor.attribute(train, queries, hook_config=hooks, **options)
    ids, matrix = result.agnostic_matrix()
    if len(ids) != len(train):
        raise RuntimeError(f"{len(train)} rows were asked for, {len(ids)} were scored.")
    seconds = time.perf_counter() - start
    stores = TracInAttributor(arguments, task=task).cache(
        train, queries[:1], cache_dir=str(out / "store"), hook_config=hooks
    )
    stored = sum(file.stat().st_size for file in Path(stores[0][0]).rglob("*") if file.is_file())
    return matrix.T, {"bytes": stored / len(train), "seconds": seconds}


if __name__ == "__main__":
    run(score)
