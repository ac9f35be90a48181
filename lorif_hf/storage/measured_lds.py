"""`evaluation/lds.json`: how well an index was measured to predict retraining. It may come from anybody."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import IndexCorruptedError
from .files import write_text
from .layout import LDS, Manifest, signature, signed_json
from .store import Store


_LARGEST = 1 << 16  # bytes that are read at all
_OWN_HASH = "record_sha256"


@dataclass(frozen=True)
class LDSRecord:
    """A linear datamodeling score and how it was measured.

    Args:
        mean (`float`): mean over queries, between -1 and 1; positive is good.
        confidence (`float`): of both intervals.
        query_low, query_high, subset_low, subset_high (`float` or `None`): the intervals, where there are any.
        num_queries, num_subsets, num_seeds (`int`): Q, M, and trainings per subset.
        seed_agreement (`float` or `None`): of the ground truth with itself, where there are two seeds.
        bank (`str` or `None`): Hub repo of the retrained models' losses, where it is known.
        build (`str`): the index that was measured: its manifest's fingerprint.
    """

    mean: float
    confidence: float
    query_low: float | None
    query_high: float | None
    subset_low: float | None
    subset_high: float | None
    num_queries: int
    num_subsets: int
    num_seeds: int
    seed_agreement: float | None
    bank: str | None
    build: str


def write_lds(store: Store, record: LDSRecord) -> None:
    """Keep a score with its index, whole or not at all."""
    write_text(store.folder / LDS, signed_json(asdict(record), _OWN_HASH))


def read_lds(store: Store, manifest: Manifest) -> LDSRecord | None:
    """The score of an index; `None` where it has none, or one that was measured of another index.

    Raises:
        [`~lorif_hf.errors.IndexCorruptedError`]: the file is not what it should be.
    """
    path = store.optional(LDS)
    if path is None:
        return None
    if path.stat().st_size > _LARGEST:
        raise IndexCorruptedError(LDS, f"it has over {_LARGEST:,} bytes")
    try:
        text = path.read_bytes().decode(errors="replace")  # with the line ends that are hashed
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IndexCorruptedError(LDS, f"it is not JSON ({error})") from error
    kinds = {field.name: field.type for field in fields(LDSRecord)}
    if not isinstance(values, dict) or not set(kinds) <= set(values):
        raise IndexCorruptedError(LDS, f"it must have the fields {', '.join(kinds)}")
    if values.get(_OWN_HASH) != signature(text, _OWN_HASH):
        raise IndexCorruptedError(LDS, f"its {_OWN_HASH} is another, or there is none: evaluate the index again")
    values = {name: values[name] for name in kinds}  # others are of a later version
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise IndexCorruptedError(LDS, f"'{name}' cannot be {str(value)[:50]!r}")
    record = LDSRecord(**values)
    return record if record.build == manifest.build else None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value may stand in a field of this type: scores in [-1, 1], counts above 0."""
    if value is None:
        return kind in (float | None, str | None)
    if kind in (float, float | None):
        return type(value) in (int, float) and math.isfinite(value) and -1 <= value <= 1
    return type(value) is int and 0 < value < 2**63 if kind is int else isinstance(value, str)
