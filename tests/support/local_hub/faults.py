"""Faults that a test asks for: the server misbehaves on the requests that match, a given number of times."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Literal, get_args


FaultKind = Literal["status", "drop", "corrupt", "slow"]


@dataclass
class Fault:
    """One planned misbehaviour; `fired` counts how often it happened.

    status   answer `status` (with `headers`) and do nothing of what was asked.
    drop     download: send the headers and `after` bytes of the body (for a HEAD: nothing), then cut the connection.
             Upload (PUT): read at least `after` bytes of the body, then cut. A POST is done, but its answer is lost.
    corrupt  flip one bit of byte `offset` of the body, of the answer or, for a PUT, of what was uploaded.
    slow     wait `seconds` before the answer's headers and before each `chunk_size` bytes of a body, either way.
    """

    match: str
    kind: FaultKind
    status: int = 500
    times: int | None = 1
    skip: int = 0
    after: int = 0
    offset: int = 0
    seconds: float = 0.1
    chunk_size: int = 65536
    reset: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    fired: int = 0

    def matches(self, target: str) -> bool:
        return self.match in target or re.search(self.match, target) is not None


class Faults:
    """The faults of one server, tried in the order in which they were added; a request meets one at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, match: str, kind: FaultKind, **options: object) -> Fault:
        """Plan a fault.

        `match` is a substring or a regular expression, sought in "METHOD /decoded/path?query". A HEAD comes before
        most GETs of the client: write "GET .*name" to spare it. `times=None` never stops; `skip` lets that many
        matching requests pass first. `reset=True` cuts with a TCP reset instead of an orderly close: the client
        takes the two for different errors. The other options are the fields of `Fault`.
        """
        if kind not in get_args(FaultKind):
            raise ValueError(f"kind must be one of {get_args(FaultKind)}, not {kind!r}")
        re.compile(match)  # a broken pattern should fail here, not in a server thread
        fault = Fault(match, kind, **options)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def take(self, target: str) -> Fault | None:
        """The fault that this request meets, counted down; None for an undisturbed request."""
        with self._lock:
            for fault in self._faults:
                if not fault.matches(target) or fault.fired == fault.times:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.fired += 1
                return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()


def flip_byte(body: bytes, offset: int) -> bytes:
    """`body` with the lowest bit of one byte flipped; a body too short to have that byte stays as it is."""
    if offset >= len(body):
        return body
    return body[:offset] + bytes([body[offset] ^ 1]) + body[offset + 1 :]
