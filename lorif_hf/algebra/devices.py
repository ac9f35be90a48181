"""Tensors where a model computes: what crosses to the CPU does so at once, and is waited for once."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


_WITHOUT_FLOAT64 = ("mps",)  # Apple's GPUs


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has nothing wider."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of any shapes and dtypes on the CPU. All of a device cross as one run of bytes."""
    brought = list(tensors)
    by_device: dict[torch.device, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            by_device.setdefault(tensor.device, []).append(number)
    for numbers in by_device.values():
        # The widest first, so that each begins where its dtype may.
        numbers.sort(key=lambda number: -tensors[number].element_size())
        runs = [tensors[number].contiguous().flatten().view(torch.uint8) for number in numbers]
        pieces = torch.cat(runs).cpu().split([len(run) for run in runs])
        for number, piece in zip(numbers, pieces, strict=True):
            brought[number] = piece.view(tensors[number].dtype).view(tensors[number].shape)
    return brought


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no number in small tensors is NaN or infinite. Each device is waited for once."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor.flatten())
    return all(bool(torch.isfinite(torch.cat(parts)).all()) for parts in by_device.values())


def fixed_normal(rows: int, columns: int, like: Tensor, drawn: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, (rows, columns), the same at every call and on every device. Not to be written to.

    Args:
        like (`Tensor`): on whose device and in whose dtype.
        drawn (`torch.dtype`, *optional*, defaults to `torch.float32`): in which they are drawn: other dtypes draw
            other numbers.
    """
    return _fixed_normal(rows, columns, drawn, like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _fixed_normal(rows: int, columns: int, drawn: torch.dtype, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for callers in and out of it
        generator = torch.Generator(device="cpu").manual_seed(0)
        return torch.randn(rows, columns, generator=generator, dtype=drawn).to(dtype).to(device)
