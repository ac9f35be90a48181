"""What arguments are checked for before anything is done with them."""

import re
from typing import Any, get_args

import numpy as np


def whole_number(value: Any, name: str, least: int, error: type[Exception]) -> int:
    """An argument that must be an integer of at least `least`; `True` is none.

    Args:
        value: what the caller got.
        name (`str`): what the error calls it.
        least (`int`): the smallest good value.
        error (`type[Exception]`): what is raised, with what was expected and what was given.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise error(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def whole_bytes(size: int | str | None, name: str, error: type[Exception]) -> int | None:
    """A size like 2_000_000_000, "2GB" or "512MiB" in bytes; `None` stays.

    Args:
        size: what the caller got.
        name (`str`): what the error calls it.
        error (`type[Exception]`): what is raised where it is no size.
    """
    if size is None:
        return None
    given = size
    if isinstance(size, str):
        parts = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(i?)B?\s*", size, re.IGNORECASE)
        if parts:
            power = " KMGT".index(parts[2].upper() or " ")
            size = int(float(parts[1]) * (1024 if parts[3] else 1000) ** power)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise error(f'{name} must be a number of bytes or a size like "2GB", got {given!r}.')
    return size


def one_of(value: Any, name: str, choices: Any, error: type[Exception]) -> Any:
    """An argument that must be one of the values of a `Literal`, by type too: 4.0 equals 4, but is no number of bits,
    nor is `True` one.

    Args:
        value: what the caller got.
        name (`str`): what the error calls it.
        choices: the `Literal` that stands in the signature.
        error (`type[Exception]`): what is raised, with what was expected and what was given.
    """
    known = get_args(choices)
    if isinstance(value, bool) or not any(isinstance(value, type(choice)) and value == choice for choice in known):
        raise error(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}.")
    return value
