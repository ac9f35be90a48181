"""What arguments are checked for before anything is done with them."""

from typing import Any

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
