"""bergson: `build` stores the adapters' gradients (it finds them by itself), `Attributor` scores queries with them.

Variants: `dot`, the plain inner product; `autocorrelation`, its dense covariance per matrix; `ekfac`, its factored
Hessian with corrected eigenvalues. All at bergson's own damping (0.1 of the mean eigenvalue), unprojected, with the
true labels; the last two take a pass of their own. Bytes per row are those of the gradients' file.
"""

from pathlib import Path
from typing import Any

import torch
from bergson import Attributor, DataConfig, IndexConfig, PreprocessConfig
from bergson.build import build
from bergson.config.config import HessianConfig
from bergson.hessians.hessian_approximations import approximate_hessians
from bergson.utils.peft import detect_peft_modules
from datasets import Dataset

from . import adapters, rows, run, summed_loss


BATCH = 20


def score(bed: Path, out: Path, variant: str) -> tuple[torch.Tensor, dict[str, Any]]:
    train = rows(bed, "train")
    Dataset.from_dict({"input_ids": train.tolist(), "length": [len(row) for row in train]}).save_to_disk(out / "rows")

    def config(path: Path) -> IndexConfig:
        return IndexConfig(
            run_path=str(path),
            model=str(bed / "adapter"),
            data=DataConfig(dataset=str(out / "rows")),
            precision="fp32",
            projection_dim=0,
            loss_reduction="sum",
            token_batch_size=BATCH * train.shape[1],
        )

    build(config(out / "gradients"), PreprocessConfig())
    hessian = None
    if variant != "dot":
        hessian = out / "hessian"
        method: Any = "kfac" if variant == "ekfac" else variant
        chosen = HessianConfig(method=method, ev_correction=variant == "ekfac", use_dataset_labels=True)
        approximate_hessians(config(hessian), chosen)
    attributor = Attributor(out / "gradients", hessian_path=hessian, ev_correction=variant == "ekfac")
    model, queries = adapters(bed), rows(bed, "queries")
    names = detect_peft_modules(model)
    parts = []
    for start in range(0, len(queries), BATCH):
        with attributor.trace(model.base_model, None, modules=names) as trace:
            summed_loss(model, queries[start : start + BATCH]).backward()
            model.zero_grad()
        parts.append(torch.empty_like(trace.scores).scatter_(1, trace.indices, trace.scores))
    stored = sum(grads[0].numel() for grads in attributor.grads.values()) * 4
    return torch.cat(parts), {"modules": len(attributor.grads), "bytes": stored}


if __name__ == "__main__":
    run(score)
