"""Weights that are elsewhere than their module but while it is called: accelerate's hooks bring them there."""

import contextlib

from torch import Tensor, nn


def offloaded(module: nn.Module, name: str) -> Tensor | None:
    """The numbers of a parameter that accelerate brings from the CPU or the disk at each call (`cpu_offload`,
    `disk_offload`, `device_map`); `None`: it brings none of that name."""
    waiting = [getattr(module, "_hf_hook", None)]
    while waiting:
        hook = waiting.pop()
        waiting += getattr(hook, "hooks", ())  # of a SequentialHook
        stored = getattr(hook, "weights_map", None)
        if stored is not None:
            with contextlib.suppress(KeyError):
                tensor: Tensor = stored[name]
                return tensor
    return None
