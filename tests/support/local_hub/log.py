"""What the server was asked and what it really sent: tests count requests and bytes with it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass
class Request:
    """One request. `status` is 0 as long as (or because) nothing was answered; bytes are bytes of the bodies."""

    method: str
    path: str  # percent-decoded, with the query
    range: str | None = None  # the Range header as it came
    status: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    user: str | None = None
    commit: str | None = None  # the commit that was served or made
    path_in_repo: str | None = None  # the file that was served
    oid: str | None = None  # the LFS object that was uploaded and accepted


class RequestLog:
    """Thread-safe list of requests.

    An entry is written before the bytes it describes go out, so that a client which has its answer always finds
    that answer in the log. The price: bytes lost in a cut connection count as sent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Request] = []

    def start(self, entry: Request) -> Request:
        with self._lock:
            self._entries.append(entry)
        return entry

    def update(self, entry: Request, **fields: object) -> None:
        with self._lock:
            for name, value in fields.items():
                setattr(entry, name, value)

    def add_bytes(self, entry: Request, *, sent: int = 0, received: int = 0) -> None:
        with self._lock:
            entry.bytes_sent += sent
            entry.bytes_received += received

    def snapshot(self) -> list[Request]:
        with self._lock:
            return [replace(entry) for entry in self._entries]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
