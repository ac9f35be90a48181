"""`influence_ensemble.json`: which indices lie in a folder, and what each counts for."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import IndexCorruptedError, IndexFormatError
from .files import file_sha256, write_text
from .layout import MANIFEST, check_version, inside, signature, signed_json


ENSEMBLE = "influence_ensemble.json"

_VERSION = "1.0"
_OWN_HASH = "ensemble_sha256"
_LARGEST, _MOST = 1 << 22, 10_000  # bytes of JSON, members


@dataclass(frozen=True)
class Member:
    """An index of the ensemble.

    Args:
        folder (`str`): the folder beside the manifest that holds it, a plain name.
        weight (`float`): what its scores are multiplied with.
        sha256 (`str`): of its own manifest, which vouches for the rest of it.
        step (`int`, *optional*): the training step of its checkpoint, where known.
    """

    folder: str
    weight: float
    sha256: str
    step: int | None = None


def member_of(folder: Path, name: str, weight: float, step: int | None) -> Member:
    """What is said of a finished index in the folder of an ensemble."""
    return Member(name, weight, file_sha256(folder / name / MANIFEST), step)


def write_ensemble(folder: Path, members: Sequence[Member]) -> None:
    """Write the manifest: whole, or not at all."""
    values = {"format_version": _VERSION, "members": [asdict(member) for member in members]}
    write_text(folder / ENSEMBLE, signed_json(values, _OWN_HASH))


def read_ensemble(folder: Path) -> list[Member]:
    """The members of the ensemble in a folder, which may come from anybody.

    Raises:
        [`~lorif_hf.errors.IndexFormatError`]: there is none, or of a format that this version does not know.
        [`~lorif_hf.errors.IndexCorruptedError`]: it is not the text that was written, a value is impossible, a folder
            leads elsewhere, or the index in one is another.
    """
    try:
        path = inside(folder, ENSEMBLE)
        if path.stat().st_size > _LARGEST:
            raise IndexFormatError(f"{ENSEMBLE} of {folder} has over {_LARGEST:,} bytes: no ensemble has.")
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise IndexFormatError(
            f"{folder} holds no ensemble of indices: {ENSEMBLE} is missing or cannot be read ({error})."
        ) from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IndexFormatError(f"{ENSEMBLE} is not JSON ({error}): this is no ensemble of indices.") from error
    if not isinstance(values, dict) or not isinstance(values.get("format_version"), str):
        raise IndexFormatError(f"{ENSEMBLE} has no format_version: this is no ensemble of indices.")
    check_version(values["format_version"])
    _require(values.get(_OWN_HASH) == signature(text, _OWN_HASH), f"its {_OWN_HASH} is another")
    listed = values.get("members")
    items = listed if isinstance(listed, list) else []
    _require(0 < len(items) <= _MOST, "its members are no list of indices")
    members = [_member(item) for item in items]
    _require(len({member.folder for member in members}) == len(members), "a member is listed twice")
    for member in members:
        file = f"{member.folder}/{MANIFEST}"
        try:
            same = file_sha256(inside(folder, file)) == member.sha256
        except OSError as error:
            raise IndexCorruptedError(file, f"it is missing or cannot be read ({error})") from error
        if not same:
            raise IndexCorruptedError(file, f"it is another index than {ENSEMBLE} says")
    return members


def _member(item: Any) -> Member:
    _require(isinstance(item, dict), "a member is no JSON object")
    folder, weight, sha256, step = (item.get(name) for name in ("folder", "weight", "sha256", "step"))
    plain = isinstance(folder, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", folder)
    _require(bool(plain), f"{str(folder)[:80]!r} is no plain name of a folder")
    good = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
    _require(good, f"the weight of {folder} is no finite number")
    _require(
        isinstance(sha256, str) and bool(re.fullmatch(r"[0-9a-f]{64}", sha256)), f"the SHA-256 of {folder} is none"
    )
    _require(step is None or (type(step) is int and 0 <= step < 2**63), f"the step of {folder} is no natural number")
    return Member(folder, float(weight), sha256, step)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise IndexCorruptedError(ENSEMBLE, problem)
