"""Random numbers that others draw later must not depend on what is drawn here."""

import functools
import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .code_identity import enclosed, own_globals


_GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
_LEAVES = (bool, int, float, str, bytes, type(None), type, ModuleType, Tensor, np.ndarray, nn.Module)
_MOST_VISITED = 2000  # objects, in which generators are looked for
_LONGEST = 100  # containers that are looked into: a vocabulary holds no generator
_LIBRARIES = {"builtins", "abc", "collections", "typing", "torch", "numpy", "datasets", "transformers", "trl", "PIL"}


@contextmanager
def random_state_kept(*objects: Any) -> Iterator[None]:
    """Random numbers may be drawn inside; afterwards, also after an error, it is as if they had not been.

    Kept are the states of `random`, of NumPy's legacy generator and of PyTorch's on the CPU and, where they are in
    use, on CUDA devices and MPS; and those of the generators that the objects (a collator, a dataset) hold: in their
    attributes and in what these hold, in closures, and in the globals that their functions read. An attribute in
    which a generator is made inside is what it was.

    Args:
        objects: what draws.
    """
    generators, holders = _reachable(objects)
    states = [(generator, _state(generator)) for generator in generators]
    contents = [(holder, dict(holder)) for holder in holders]
    legacy, python = np.random.get_state(), random.getstate()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        for holder, before in contents:
            _take_out_new(holder, before)
        for generator, state in states:
            _set_state(generator, state)


def generators_of(*objects: Any) -> list[Any]:
    """The generators that objects hold, those that [`random_state_kept`] keeps; a search of milliseconds."""
    return _reachable(objects)[0]


def seed(text: str, generators: Iterable[Any] = ()) -> None:
    """Set the states of `random`, of NumPy, of PyTorch and of further generators to what a text decides.

    Args:
        text (`str`): the same text gives the same random numbers, on every machine.
        generators: those of [`generators_of`].
    """
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
        elif isinstance(generator, (np.random.RandomState, random.Random)):
            generator.seed(number)
        else:
            bits = _bits(generator)
            bits.state = type(bits)(number).state


def _take_out_new(holder: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Undo the making of generators. Their states alone cannot be restored: they had none."""
    for name, value in list(holder.items()):
        if isinstance(value, _GENERATORS) and value is not before.get(name):
            if name in before:
                holder[name] = before[name]
            else:
                del holder[name]


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate() if isinstance(generator, random.Random) else _bits(generator).state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        _bits(generator).state = state


def _bits(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


def _reachable(objects: tuple[Any, ...]) -> tuple[list[Any], list[dict[Any, Any]]]:
    """The generators that objects hold, and the dicts, of attributes too, in which further ones may be put."""
    generators: list[Any] = []
    holders: list[dict[Any, Any]] = []
    waiting: list[Any] = list(objects)
    visited: dict[int, Any] = {}  # with the objects, so that no address is given to another one meanwhile
    while waiting and len(visited) < _MOST_VISITED:
        value = waiting.pop(0)
        if id(value) in visited or isinstance(value, (*_LEAVES, random.SystemRandom)):
            continue
        visited[id(value)] = value
        if isinstance(value, _GENERATORS):
            generators.append(value)
            continue
        attributes = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        if isinstance(attributes, dict) and len(attributes) <= _LONGEST:
            holders.append(attributes)
            waiting += attributes.values()
        waiting += _held(value)
    return generators, holders


def _held(value: Any) -> list[Any]:
    """What a value holds otherwise than in its attributes."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        return [*enclosed(value).values(), *(value.__defaults__ or ()), *own_globals(value).values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value) if len(value) <= _LONGEST else []
    kinds = [kind for kind in type(value).__mro__ if kind.__module__.partition(".")[0] not in _LIBRARIES]
    methods = [item for kind in kinds for item in vars(kind).values() if isinstance(item, FunctionType)]
    slots = [name for kind in kinds for name in np.atleast_1d(vars(kind).get("__slots__", ())).tolist()]
    return [*methods, *(getattr(value, name, None) for name in slots)]
