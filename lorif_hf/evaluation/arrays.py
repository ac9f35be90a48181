"""What every metric is given: finite arrays and masks of the right shape, or an error that names the place."""

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import EvaluationError


def as_array(value: Any, name: str) -> np.ndarray:
    """A tensor, array or nested list as an array; nothing is copied where it need not be."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        return (value.float() if value.is_floating_point() and value.itemsize == 2 else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype.kind == "O":
        raise EvaluationError(f"{name} must be an array; found rows of different lengths, or no numbers.")
    return array


def finite_array(value: Any, name: str, axes: tuple[str, ...]) -> np.ndarray:
    """Finite integers or floats, in the precision they came in.

    Args:
        value: tensor, array or nested list.
        name (`str`): what errors call it.
        axes (`tuple[str, ...]`): what one step along each axis is, for example `("query", "training row")`.
    """
    array = _with_axes(as_array(value, name), name, axes)
    if array.dtype.kind not in "iuf":
        raise EvaluationError(f"{name} must hold numbers, found {array.dtype}.")
    # Row by row: the scores of a large index may be a memory map.
    for row, values in enumerate(array if array.ndim > 1 else [array]):
        if not np.isfinite(values).all():
            place = (row, *np.argwhere(~np.isfinite(values))[0])[-array.ndim :]
            where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
            raise EvaluationError(
                f"{name} must be finite, found {array[place]} at {where}. Leave that {axes[0]} out, or find "
                "out where the value comes from."
            )
    return array


def booleans(value: Any, name: str, axes: tuple[str, ...]) -> np.ndarray:
    """A mask. Numbers are refused: a list of row numbers would pass for one."""
    array = _with_axes(as_array(value, name), name, axes)
    if array.dtype != np.bool_:
        raise EvaluationError(
            f"{name} must be boolean, found {array.dtype}. If it holds zeros and ones, pass np.asarray({name}) == 1; "
            "if it holds row numbers, set these rows of a mask to True."
        )
    return array


def _with_axes(array: np.ndarray, name: str, axes: tuple[str, ...]) -> np.ndarray:
    """The array, once it has these axes and something in it."""
    shape = f"({', '.join(f'one {axis}' for axis in axes)})"
    if array.ndim != len(axes):
        raise EvaluationError(f"{name} must have {len(axes)} axes {shape}, found shape {array.shape}.")
    if array.size == 0:
        raise EvaluationError(f"{name} is empty, shape {array.shape}: there is nothing to evaluate.")
    return array
