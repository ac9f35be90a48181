"""What tells one user's function or collator from another: its code, and the settings that it was made with."""

import contextlib
import dis
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Set
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..tasks.base import Task
from .fingerprint import by_value, class_name


_MADE_IN = ("__init__", "__post_init__", "__new__", "__setstate__")
_SINGLE = (bool, int, float, complex, str, bytes, type(None), frozenset)
_LIBRARIES = {"transformers", "tokenizers", "torch", "peft", "datasets", "accelerate"}
_DEEPEST = 8


def code_identity(function: Any) -> str:
    """The name of a function, or of a callable object's class, and a hash of what it does.

    It covers the code with its constants; defaults; what it closes over and the globals of its own module that it
    reads, where they are plain values or functions; of a `functools.partial` also the arguments, of a bound method
    and a callable object also the public attributes that hold plain values. What the code itself assigns (counters,
    caches, generators) is its state, not a setting, and does not count.
    """
    named = function.func if isinstance(function, functools.partial) else function
    digest = hashlib.sha256(by_value(_description(function, [])))
    return f"{class_name(named)} {digest.hexdigest()[:16]}"


def task_code(task: Task) -> str:
    """What tells a task's losses from other ones of the same name."""
    return code_identity(getattr(task, "__wrapped__", task.losses))


def _description(value: Any, around: list[int]) -> Any:
    """What is hashed of a function, of a callable object or of a plain setting; `around`: what is being described."""
    if id(value) in around or len(around) > _DEEPEST:
        return class_name(value)
    around = [*around, id(value)]
    if isinstance(value, _SINGLE):
        return value
    if isinstance(value, (list, tuple)):
        return [_description(item, around) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _description(item, around) for key, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray, np.generic, Set)):
        return value
    if isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
        return ["partial", *(_description(part, around) for part in parts)]
    if isinstance(value, MethodType):
        return [_description(value.__func__, around), _settings(value.__self__, around)]
    if isinstance(value, FunctionType):
        return _function(value, around)
    if isinstance(value, type) or inspect.isbuiltin(value):
        return class_name(value)
    if hasattr(value, "__wrapped__"):
        return [class_name(value), _description(value.__wrapped__, around)]
    others = type(value).__module__.partition(".")[0] in _LIBRARIES and len(around) > 1  # a tokenizer, a model
    return _settings(value, around) if callable(value) and not others else class_name(value)


def _function(function: FunctionType, around: list[int]) -> Any:
    own = function.__code__
    assigned = _assigned([own], "STORE_DEREF", "STORE_GLOBAL")
    variables = {
        name: _description(value, around)
        for name, value in [*enclosed(function).items(), *sorted(own_globals(function).items())]
        if name not in assigned and _is_fixed(value)
    }
    defaults = _description([function.__defaults__, function.__kwdefaults__], around)
    return [class_name(function), _code(own), defaults, variables]


def _settings(value: Any, around: list[int]) -> Any:
    """Of an object: its class, the code of it, and what it was made with."""
    methods = {name: item for name, item in vars(type(value)).items() if isinstance(item, FunctionType)}
    every = [item for kind in type(value).__mro__ for item in vars(kind).items() if isinstance(item[1], FunctionType)]
    state = _assigned([item.__code__ for name, item in every if name not in _MADE_IN], "STORE_ATTR")
    held = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
    settings = {
        name: _description(item, around)
        for name, item in held.items()
        if not name.startswith("_") and name not in state and item is not None
    }
    return [class_name(value), {name: _code(item.__code__) for name, item in methods.items()}, settings]


def _code(code: CodeType) -> Any:
    constants = [_code(item) if isinstance(item, CodeType) else item for item in code.co_consts]
    return [code.co_code, constants, code.co_names, code.co_varnames]


def enclosed(function: FunctionType) -> dict[str, Any]:
    """What a function closes over, by name."""
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # nothing was assigned yet
            values[name] = cell.cell_contents
    return values


def own_globals(function: FunctionType) -> dict[str, Any]:
    """The globals that a function reads, by name, without what is of other modules: imported functions, classes."""
    names = {name for code in codes(function.__code__) for name in code.co_names}
    read = {name: function.__globals__[name] for name in names if name in function.__globals__}
    own = function.__module__
    return {name: value for name, value in read.items() if getattr(value, "__module__", own) in (own, None)}


def codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions in it."""
    yield code
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from codes(item)


def _assigned(functions: list[CodeType], *operations: str) -> set[str]:
    """Names that code assigns to."""
    return {
        str(step.argval)
        for outer in functions
        for code in codes(outer)
        for step in dis.get_instructions(code)
        if step.opname in operations
    }


def _is_fixed(value: Any) -> bool:
    """Whether a value stays what it is: a list that a function closes over is where it leaves things."""
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    return isinstance(value, (*_SINGLE, FunctionType, MethodType, functools.partial))
