"""dattri's LoGra: `cache` stores projected gradients, their inverse covariances and the preconditioned gradients.

`proj_dim` is the product of two equal sides, one for all layers: bed.rank squared, the D of ours at equal f. Damping
is 0.1 of the mean eigenvalue, as LogIX and our `logra()` have it (no cost depends on it). Two variants:

- `"disk"` (offload="disk"): everything in files, which a fresh process queries. dattri takes the cache for computed
  where `full_train_dataloader` is set, which `cache` does and no argument of the constructor: it is set by hand. Its
  buffers are pinned, which torch refuses on a machine without an accelerator: here they are not.
- `"memory"` (offload="cpu", the constructor's default and its examples'): tensors in memory, nothing on disk, so the
  process that queries builds first (its time of opening). Bytes are those of the tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from dattri.algorithm.block_projected_if.offload.disk_io import manager
from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from torch.utils.data import DataLoader

from ..measuring import Bed, run, tracked


class UnpinnedBuffers(manager.BufferPool):
    """dattri's buffers without pinned memory."""

    def __init__(self, *args: Any, **kwargs: Any):
        with _unpinned():
            super().__init__(*args, **kwargs)


@contextmanager
def _unpinned() -> Iterator[None]:
    zeros = torch.zeros

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return zeros(*args, **kwargs)

    with mock.patch.object(torch, "zeros", unpinned):
        yield


if not torch.accelerator.is_available():
    manager.BufferPool = UnpinnedBuffers


def _loader(rows: torch.Tensor, batch_size: int) -> DataLoader:
    return DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=batch_size, shuffle=False)


def _loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], device: str) -> torch.Tensor:
    return model(**{key: value.to(device) for key, value in batch.items()}).loss


def _attributor(bed: Bed, model: Any, store: Path, variant: str) -> LoGraAttributor:
    return LoGraAttributor(
        AttributionTask(loss_func=_loss, model=model, checkpoints=model.state_dict()),
        layer_names=tracked(model),
        hessian="eFIM",
        damping=0.1,
        device="cpu",
        proj_dim=bed.rank**2,
        offload={"disk": "disk", "memory": "cpu"}[variant],
        cache_dir=str(store),
    )


def build(bed: Bed, model: Any, store: Path, variant: str) -> dict[str, Any]:
    attributor = _attributor(bed, model, store, variant)
    attributor.cache(_loader(bed.rows("train"), bed.batch_size))
    facts = {"modules": len(attributor.layer_names), "dimensions": attributor.layer_dims}
    if variant == "memory":
        held = attributor.offload_manager
        fixed = sum(tensor.nbytes for tensor in held.preconditioners)
        grown = sum(tensor.nbytes for kind in (held.cached_gradients, held.cached_ifvp) for tensor in kind.values())
        facts |= {"bytes": fixed + grown, "bytes_fixed": fixed, "where": "memory"}
    return facts


def open_index(bed: Bed, model: Any, store: Path, variant: str) -> tuple[Any, ...]:
    attributor = _attributor(bed, model, store, variant)
    train = _loader(bed.rows("train"), bed.batch_size)
    if variant == "memory":
        attributor.cache(train)
    else:
        attributor.full_train_dataloader = train
    return attributor, train, bed.batch_size


def query(opened: tuple[Any, ...], rows: torch.Tensor) -> torch.Tensor:
    attributor, train, batch_size = opened
    return attributor.attribute(train, _loader(rows, batch_size)).T


if __name__ == "__main__":
    run(build, open_index, query, fixed=("precond",))
