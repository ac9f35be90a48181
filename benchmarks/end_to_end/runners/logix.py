"""LogIX's LoGra: `add_lora` of one rank for all layers, gradients logged in float32, the dense ("raw") covariance.

As in its language-modelling example: sum the loss, log with a scheduler, `initialize_from_log` in a fresh process,
`compute_influence_all` over the log in batches of 64. The inverse of the covariance is computed at the first query.

`initialize_from_log` of 0.1.1 draws the projections anew and saves them over the old ones before it loads them: only
because the seed is set before, here as in the build, are both the same. Reading the log needs
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 with torch 2.6 and later: the orchestrator sets it.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from logix import LogIX, LogIXScheduler
from logix.utils import merge_logs

from ..measuring import Bed, run, summed_loss


PROJECT = "bed"
FILTER = ["self_attn", "mlp"]  # all linear layers but the head


def _start(bed: Bed, model: Any, store: Path) -> LogIX:
    config = store / "given.yaml"
    config.write_text(yaml.safe_dump({"root_dir": str(store), "lora": {"init": "random", "rank": bed.rank}}))
    started = LogIX(PROJECT, config=str(config))
    started.watch(model, name_filter=FILTER)
    torch.manual_seed(0)
    return started


def build(bed: Bed, model: Any, store: Path, variant: str) -> dict[str, Any]:
    started = _start(bed, model, store)
    started.add_lora()
    rows = bed.rows("train")
    for _ in LogIXScheduler(started, lora="none", hessian="raw", save="grad"):
        for start in range(0, len(rows), bed.batch_size):
            batch = rows[start : start + bed.batch_size]
            with started(data_id=[str(start + row) for row in range(len(batch))], mask=torch.ones_like(batch)):
                model.zero_grad()
                summed_loss(model, batch).backward()
        started.finalize()
    return {"modules": len(started.logger.modules_to_hook)}


def open_index(bed: Bed, model: Any, store: Path, variant: str) -> tuple[Any, ...]:
    started = _start(bed, model, store)
    started.initialize_from_log()
    loader = started.build_log_dataloader(batch_size=64)
    started.setup({"grad": ["log"]})
    started.eval()
    return started, model, loader, bed.batch_size


def query(opened: tuple[Any, ...], rows: torch.Tensor) -> torch.Tensor:
    started, model, loader, batch_size = opened
    logs = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        with started(data_id=[f"query {start + row}" for row in range(len(batch))], mask=torch.ones_like(batch)):
            model.zero_grad()
            summed_loss(model, batch).backward()
        logs.append(copy.deepcopy(started.get_log()))
    influence = started.influence.compute_influence_all(merge_logs(logs), loader)
    order = torch.tensor([int(name) for name in influence["tgt_ids"]])
    scores = torch.empty(len(rows), len(order))
    scores[:, order] = influence["influence"].float()
    return scores


if __name__ == "__main__":
    run(
        build, open_index, query, fixed=(f"{PROJECT}/state", f"{PROJECT}/lora", f"{PROJECT}/config.yaml", "given.yaml")
    )
