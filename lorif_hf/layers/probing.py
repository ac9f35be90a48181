"""Calling a module again with other parameters, unseen by whoever watches its calls, and without a trace in it."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


_probe = threading.local()


def is_probing() -> bool:
    """Whether a module is called on trial in this thread: such calls are no part of a pass."""
    return getattr(_probe, "depth", 0) > 0


def output_with(
    module: nn.Module, parameters: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a module would return with these parameters in place of its own, without a graph.

    A copy is called that shares all else with the module: the module itself, which other threads may use, stays as it
    is, also after an error. Random numbers that it draws are drawn again later.

    Args:
        module (`nn.Module`): any.
        parameters (`Mapping[str, Tensor]`): some of those that it holds itself, by what it calls them.
        args, kwargs: what it is called with.
    """
    twin = object.__new__(type(module))
    own = module.__dict__
    twin.__dict__.update(own, _parameters={**module._parameters, **parameters})
    devices = {t.device for t in tensors_in((*args, *kwargs.values())) if t.is_cuda}
    _probe.depth = getattr(_probe, "depth", 0) + 1
    try:
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            return type(module).forward(twin, *args, **kwargs)
    finally:
        _probe.depth -= 1


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments."""
    return [value for value in values if isinstance(value, Tensor)]
