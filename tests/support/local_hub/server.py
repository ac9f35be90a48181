"""The HTTP side: sockets, request log and faults. What is answered is decided in `routes`."""

from __future__ import annotations

import os
import socket
import struct
import threading
import traceback
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from . import routes  # noqa: F401  (fills the table that `answer` looks in)
from .calls import Call, Reply, answer, error_reply
from .faults import Fault, Faults, flip_byte
from .log import Request, RequestLog
from .state import MAIN, Commit, HubError, HubState


CHUNK_SIZE = 65536


class LocalHub:
    """A Hub on a free port of 127.0.0.1, from `start()` (or `with`) to `close()`.

    `token` may write as the user "user", `read_token` may only read as the same user; `add_token` makes others.
    """

    def __init__(self) -> None:
        self.state = HubState()
        self.faults = Faults()
        self.log = RequestLog()
        self.errors: list[str] = []  # tracebacks of the server's own failures: a test can assert that it is empty
        self._add_own_tokens()
        self.stopping = threading.Event()
        self._server: _Server | None = None
        self._endpoint = ""

    def _add_own_tokens(self) -> None:
        self.token = self.add_token("hf_write", "user")
        self.read_token = self.add_token("hf_read", "user", write=False)

    def reset(self) -> None:
        """Forget everything but the address: a fresh Hub for the next test."""
        self.faults.clear()
        self.log.clear()
        self.errors.clear()
        self.state = HubState()
        self._add_own_tokens()

    # Running

    def start(self) -> LocalHub:
        self._server = _Server(self)
        self._endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def close(self) -> None:
        """Stop at once: from here on the endpoint is down, for kept-alive connections too."""
        if self._server is not None:
            self.stopping.set()
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up_all()
            self._server = None

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def environment(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """The variables that point a subprocess at this Hub, on top of the present environment."""
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return {**os.environ, **variables, "HF_TOKEN": self.token if token is None else token}

    # What tests set and ask

    def add_token(self, name: str, user: str = "user", write: bool = True, orgs: tuple[str, ...] = ()) -> str:
        """Make a token; its value is `name`. `orgs` are further namespaces in which it has the user's rights."""
        return self.state.add_token(name, user, write, orgs).value

    def set_gated(self, repo_id: str, repo_type: str = "model", allowed_users: tuple[str, ...] = ()) -> None:
        """Gate a repo: only its owner and `allowed_users` may download from it."""
        with self.state.lock:
            repo = self.state.get(repo_type, repo_id)
            repo.gated, repo.allowed_users = True, set(allowed_users)

    def files(self, repo_id: str, repo_type: str = "model", revision: str = MAIN) -> dict[str, bytes]:
        """What the Hub holds, by path: the truth to compare a client's view with."""
        with self.state.lock:
            repo = self.state.get(repo_type, repo_id)
            return {path: repo.blobs[file.sha256] for path, file in repo.resolve(revision).files.items()}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = MAIN) -> list[Commit]:
        """The commits of a revision, the newest first."""
        with self.state.lock:
            return list(self.state.get(repo_type, repo_id).history(revision))

    @property
    def requests(self) -> list[Request]:
        return self.log.snapshot()

    def reset_log(self) -> None:
        self.log.clear()

    def bytes_served(self, path_suffix: str | None = None) -> int:
        """Body bytes of the files' GETs that were really sent, of the paths that end in `path_suffix`."""
        return sum(
            request.bytes_sent
            for request in self.requests
            if request.method == "GET" and request.path_in_repo and request.path_in_repo.endswith(path_suffix or "")
        )

    def uploaded(self) -> list[tuple[str, int]]:
        """(SHA-256, size) of each LFS object that was put and accepted."""
        return [(request.oid, request.bytes_received) for request in self.requests if request.oid]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: LocalHub) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def, override]
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:  # type: ignore[no-untyped-def, override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def, override]
        """A client that goes away is not worth a traceback on the terminal; our own failures are in `errors`."""

    def hang_up_all(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # already gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go out in two writes; Nagle would add 40 ms to each answer
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server.hub
        entry = hub.log.start(Request(self.command, unquote(self.path), self.headers.get("Range")))
        fault = hub.faults.take(f"{self.command} {entry.path}")
        body = self._read_body(entry, fault)
        if body is None:
            return self._hang_up(fault)
        if fault and fault.kind == "corrupt" and self.command == "PUT":
            body = flip_byte(body, fault.offset)
        if fault and fault.kind == "status":
            reply = error_reply(HubError(fault.status, "planned fault"))
            reply.headers.update(fault.headers)
        else:
            reply = self._answer(body, entry)
        self._send(reply, entry, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, body: bytes, entry: Request) -> Reply:
        hub = self.server.hub
        url = urlsplit(self.path)
        call = Call(hub.state, hub.endpoint, self.command, url.path, parse_qs(url.query), self.headers, body)
        try:
            with hub.state.lock:
                call.token = hub.state.authenticate(self.headers.get("Authorization"))
                hub.log.update(entry, user=call.token.user if call.token else None)
                reply = answer(call)
        except HubError as error:
            return error_reply(error)
        except Exception:
            hub.errors.append(traceback.format_exc())
            return error_reply(HubError(500, f"the test server failed: {hub.errors[-1]}"))
        hub.log.update(entry, **reply.log)
        return reply

    # Reading

    def _read_body(self, entry: Request, fault: Fault | None) -> bytes | None:
        """The request's body, or None where the fault says to cut the connection while it comes in."""
        limit = fault.after if fault and fault.kind == "drop" and self.command == "PUT" else None
        parts = []
        for part in self._body_parts(fault):
            parts.append(part)
            self.server.hub.log.add_bytes(entry, received=len(part))
            if limit is not None and entry.bytes_received >= limit:
                return None
        return b"".join(parts)

    def _body_parts(self, fault: Fault | None) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield from self._read(size, fault)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._read(int(self.headers.get("Content-Length", 0)), fault)

    def _read(self, size: int, fault: Fault | None) -> Iterator[bytes]:
        while size > 0:
            self._pause(fault)
            part = self.rfile.read(min(size, _chunk_size(fault)))
            if not part:
                raise ConnectionError("the client went away")
            size -= len(part)
            yield part

    # Writing

    def _send(self, reply: Reply, entry: Request, fault: Fault | None) -> None:
        dropped = fault if fault and fault.kind == "drop" else None
        if dropped and self.command == "HEAD":  # there is no body to cut: not even the headers go out
            return self._hang_up(dropped)
        body = flip_byte(reply.body, fault.offset) if fault and fault.kind == "corrupt" else reply.body
        self._pause(fault)
        self.server.hub.log.update(entry, status=reply.status)
        try:
            self._send_headers(reply.status, len(body), reply.headers)
            if self.command != "HEAD":
                self._send_body(body[: dropped.after] if dropped else body, entry, fault)
            if dropped:
                self._hang_up(dropped)
        except ConnectionError:
            self.close_connection = True

    def _send_headers(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes, entry: Request, fault: Fault | None) -> None:
        step = _chunk_size(fault)
        for start in range(0, len(body), step):
            self._pause(fault)
            chunk = body[start : start + step]
            self.server.hub.log.add_bytes(entry, sent=len(chunk))
            self.wfile.write(chunk)

    # Misbehaving

    def _pause(self, fault: Fault | None) -> None:
        if fault and fault.kind == "slow":
            self.server.hub.stopping.wait(fault.seconds)

    def _hang_up(self, fault: Fault | None) -> None:
        """Cut the connection: the client sees an early end of the stream or, with `reset`, a TCP reset."""
        self.close_connection = True
        if fault and fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Closing the descriptor itself: the orderly shutdown that socketserver would do sends no reset.
            os.close(self.connection.detach())


def _chunk_size(fault: Fault | None) -> int:
    if fault and fault.kind == "slow":
        return fault.chunk_size
    if fault and fault.kind == "drop":
        return min(fault.after or 1, CHUNK_SIZE)  # no more is read of an upload than the fault lets through
    return CHUNK_SIZE
