"""A `Call` in, a `Reply` out (or a `HubError`), and the table that says which function answers which path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import unquote

from .state import MAIN, HubError, HubState, Repo, Token


# A revision is one percent-encoded segment, but HfFileSystem leaves the slashes of these refs as they are.
REVISION = r"(?P<revision>refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+)"
REPO_API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
REPO_PAGE = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"


@dataclass
class Call:
    """One request, as the routes need it."""

    state: HubState
    endpoint: str
    method: str
    path: str  # still percent-encoded: a slash inside a revision must not look like a separator
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    token: Token | None = None
    groups: dict[str, str] = field(default_factory=dict)  # the named groups of the route's pattern, decoded

    @property
    def kind(self) -> str:
        return self.groups.get("kind") or "model"

    @property
    def repo_id(self) -> str:
        return self.groups["repo_id"]

    @property
    def revision(self) -> str:
        return self.groups.get("revision") or MAIN

    @property
    def as_pull_request(self) -> bool:
        return self.flag("create_pr")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def readable(self) -> Repo:
        return self.state.readable(self.kind, self.repo_id, self.token)

    def writable(self, as_pull_request: bool = False) -> Repo:
        return self.state.writable(self.kind, self.repo_id, self.token, as_pull_request)

    def repo_url(self, repo: Repo) -> str:
        return f"{self.endpoint}/{repo.url_path}"


@dataclass
class Reply:
    """An answer. `log` holds what the request log should know of it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    log: dict[str, object] = field(default_factory=dict)


Route = Callable[[Call], Reply]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(methods: str, pattern: str) -> Callable[[Route], Route]:
    def register(function: Route) -> Route:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return register


def answer(call: Call) -> Reply:
    for methods, pattern, function in ROUTES:
        match = pattern.fullmatch(call.path)
        if match and call.method in methods.split():
            call.groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            return function(call)
    raise HubError(404, f"LocalHub has no route for {call.method} {call.path}")


def json_reply(data: object, status: int = 200, **log: object) -> Reply:
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json; charset=utf-8"}, log)


def error_reply(error: HubError) -> Reply:
    reply = json_reply({"error": error.message, **error.extra}, error.status)
    reply.headers.update(error.headers)
    reply.headers["X-Error-Message"] = error.message.splitlines()[0]
    if error.code:
        reply.headers["X-Error-Code"] = error.code
    return reply
