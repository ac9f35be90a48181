"""A value's bytes: the same in every process for equal rows and settings, whatever they are made of."""

import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import json
import pathlib
import re
import sys
import uuid
from collections.abc import Mapping, Set
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


# Their text is their value. Of dtypes and ranges, too.
_TEXTUAL: tuple[type, ...] = (
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction, complex),
    *(uuid.UUID, pathlib.PurePath, re.Pattern, range, slice, np.dtype, torch.dtype, torch.device),
)

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_DEEPEST = 50


def by_value(value: Any) -> bytes:
    """A value as bytes: JSON, with arrays and tensors as the lists of their numbers, and what JSON has no word for by
    what it holds: bytes and images by their hash, sets in order, dataclasses by their fields, dates by their text.

    An object that only its address tells from another counts by the name of its class.
    """
    return _text(value).encode()


def row_bytes(row: Any, columns: Set[str]) -> tuple[bytes, bytes]:
    """A row as bytes, and those of its columns of the given names; of the whole row where it has none of them."""
    if not isinstance(row, Mapping):
        whole = by_value(row)
        return whole, whole
    parts = {str(key): _text(value) for key, value in row.items()}
    whole = _joined(parts, parts.keys())
    here = parts.keys() & columns
    return whole, _joined(parts, here) if here and len(here) < len(parts) else whole


def _joined(parts: Mapping[str, str], names: Set[str]) -> bytes:
    return ("{" + ", ".join(f"{_quoted(name)}: {parts[name]}" for name in sorted(names)) + "}").encode()


_quoted = lru_cache(maxsize=1024)(json.dumps)


def _text(value: Any) -> str:
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError):  # keys that are no texts or have no order, or a circle
        return _encoder.encode(_plain(value))


def _plain(value: Any, depth: int = 0) -> Any:
    """What JSON can hold of a value, keys as texts, cut where a circle begins to repeat."""
    if depth > _DEEPEST:
        return class_name(value)
    if isinstance(value, Mapping):
        return {str(_plain(key, depth + 1)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _plain(_held(value), depth + 1)


def _held(value: Any) -> Any:
    """What a value that JSON has no word for holds, as values nearer to JSON."""
    if isinstance(value, Tensor):
        return _numbers_of(value)
    if isinstance(value, (np.ndarray, np.generic)):
        listed = value.tolist()
        return class_name(value) if isinstance(listed, type(value)) else listed
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, enum.Enum):
        return [class_name(value), value.name]
    if isinstance(value, Set):
        return {"set": sorted(map(_text, value))}
    if isinstance(value, _TEXTUAL):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return {"class": class_name(value), **fields}
    image = sys.modules.get("PIL.Image")
    if image is not None and isinstance(value, image.Image):
        pixels = hashlib.sha256(value.tobytes()).hexdigest()
        return {"image": [value.mode, value.size, pixels, value.getpalette() if value.mode == "P" else None]}
    for name in ("to_pylist", "as_py"):  # of Arrow
        if callable(getattr(type(value), name, None)):
            return getattr(value, name)()
    if callable(getattr(type(value), "__array__", None)):  # series of pandas and polars, arrays of JAX
        return _held(np.asarray(value))
    return _said(value)


def _numbers_of(tensor: Tensor) -> Any:
    try:
        return tensor.detach().cpu().tolist()
    except (RuntimeError, NotImplementedError, ValueError):  # sparse, quantized, or on no device
        try:
            return tensor.detach().to_dense().dequantize().tolist()
        except (RuntimeError, NotImplementedError, ValueError):
            return [class_name(tensor), str(tensor.dtype), list(tensor.shape)]


def _said(value: Any) -> str:
    """The class of an object, and what it says of itself where that is more than where it lies."""
    if isinstance(value, type) or callable(value):
        return class_name(value)
    speaks = type(value).__repr__ is not object.__repr__ or type(value).__str__ is not object.__str__
    try:
        said = str(value) if speaks else ""
    except Exception:  # whatever a stranger's class raises: then it says nothing
        said = ""
    return f"{class_name(value)} {said}" if said and not _ADDRESS.search(said) else class_name(value)


def class_name(value: Any) -> str:
    """The full name of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


_encoder = json.JSONEncoder(sort_keys=True, default=_held)
