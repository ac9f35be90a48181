"""What the Hub knows: users' tokens, repositories, commits, refs and blobs. No HTTP here."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


MAIN = "main"
GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class HubError(Exception):
    """An answer other than success. `code` is the `X-Error-Code` by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: object) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.extra = extra  # more keys for the JSON body
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class Token:
    """Who asks, and whether they may write."""

    value: str
    user: str
    write: bool
    orgs: tuple[str, ...] = ()

    def speaks_for(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.orgs


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit. Git knows an LFS file by its pointer, everybody else by its SHA-256."""

    git_oid: str
    sha256: str
    size: int
    is_lfs: bool

    @property
    def content_oid(self) -> str:
        """The ETag, and the `oid` that preupload answers: by it the client sees that nothing changed."""
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: dict[str, StoredFile]
    title: str
    description: str
    author: str
    date: str


@dataclass
class Repo:
    """One repository. Blobs are its own, as on the Hub: what one repo holds has to be uploaded again to another."""

    kind: str  # model, dataset or space
    repo_id: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None  # of a space
    variables: dict[str, str] = field(default_factory=dict)  # of a space
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)  # "refs/pr/1" -> commit
    blobs: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    allowed_users: set[str] = field(default_factory=set)  # may read although gated

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.repo_id if self.kind == "model" else f"{self.kind}s/{self.repo_id}"

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full ref, a commit id or its beginning (from 7 digits) names."""
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return self.commits[refs[revision]]
        short_name = re.sub(r"^refs/(heads|tags)/", "", revision)
        if short_name != revision:
            return self.resolve(short_name)
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            for oid in self.commits:
                if oid.startswith(revision):
                    return self.commits[oid]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> Iterator[Commit]:
        """The commits from `revision` back to the first."""
        oid: str | None = self.resolve(revision).oid
        while oid is not None:
            yield self.commits[oid]
            oid = self.commits[oid].parent

    def file(self, commit: Commit, path: str) -> StoredFile:
        if path not in commit.files:
            error = HubError(404, "Entry not found", "EntryNotFound")
            error.headers["X-Repo-Commit"] = commit.oid
            raise error
        return commit.files[path]

    def store_regular(self, content: bytes) -> StoredFile:
        return StoredFile(git_oid(content), self.store_blob(content), len(content), is_lfs=False)

    def store_blob(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return sha256

    def lfs_file(self, sha256: str) -> StoredFile:
        """The LFS file whose object was uploaded before; a commit cannot name one that was not."""
        if sha256 not in self.blobs:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        size = len(self.blobs[sha256])
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return StoredFile(git_oid(pointer.encode()), sha256, size, is_lfs=True)

    def add_commit(
        self, parent: Commit | None, files: dict[str, StoredFile], author: str, title: str, description: str = ""
    ) -> Commit:
        """Record a commit. The caller moves the ref."""
        # The number of commits stands for the time: two commits of the same content must not be one.
        identity = repr((parent and parent.oid, sorted(files.items()), title, description, len(self.commits)))
        oid = hashlib.sha1(identity.encode()).hexdigest()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        commit = Commit(oid, parent.oid if parent else None, files, title, description, author, date)
        self.commits[oid] = commit
        return commit

    def move_ref(self, revision: str, commit: Commit) -> None:
        refs = self.pull_requests if revision in self.pull_requests else self.branches
        refs[revision] = commit.oid

    def open_pull_request(self, commit: Commit) -> int:
        number = len(self.pull_requests) + 1
        self.pull_requests[f"refs/pr/{number}"] = commit.oid
        return number


class HubState:
    """All of one server's state. Hold `lock` around any use: the HTTP server answers on many threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._tokens: dict[str, Token] = {}
        self._repos: dict[tuple[str, str], Repo] = {}
        self._upload_tickets: dict[str, tuple[Repo, str]] = {}

    # Who asks

    def add_token(self, value: str, user: str, write: bool, orgs: tuple[str, ...] = ()) -> Token:
        with self.lock:
            token = self._tokens[value] = Token(value, user, write, orgs)
        return token

    def authenticate(self, authorization: str | None) -> Token | None:
        """The token of an Authorization header. The Hub refuses a wrong one even where none is needed."""
        if not authorization:
            return None
        token = self._tokens.get(authorization.removeprefix("Bearer ").strip())
        if token is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    # Repositories

    def create_repo(self, kind: str, repo_id: str, token: Token | None, private: bool = False) -> Repo:
        writer = require_writer(token)
        namespace = repo_id.split("/", maxsplit=1)[0]
        if not writer.speaks_for(namespace):
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        if (kind, repo_id) in self._repos:
            raise HubError(409, f"You already created this {kind} repo: {repo_id}")
        repo = self._repos[kind, repo_id] = Repo(kind, repo_id, private)
        files = {".gitattributes": repo.store_regular(GITATTRIBUTES)}  # the Hub's first commit has one too
        repo.branches[MAIN] = repo.add_commit(None, files, writer.user, "initial commit").oid
        return repo

    def get(self, kind: str, repo_id: str) -> Repo:
        """The repo, no rights asked: for the test itself."""
        return self._repos[kind, repo_id]

    def delete_repo(self, kind: str, repo_id: str, token: Token | None) -> None:
        repo = self.writable(kind, repo_id, token)
        del self._repos[repo.kind, repo.repo_id]

    def readable(self, kind: str, repo_id: str, token: Token | None) -> Repo:
        """The repo, for whoever may see it. For the others a private repo looks like a missing one."""
        repo = self._repos.get((kind, repo_id))
        if repo is None or (repo.private and not (token and token.speaks_for(repo.namespace))):
            raise HubError(404 if token else 401, "Repository not found", "RepoNotFound")
        return repo

    def readable_content(self, kind: str, repo_id: str, token: Token | None) -> Repo:
        """The repo, for whoever may also download from it: a gated repo shows itself but not its files."""
        repo = self.readable(kind, repo_id, token)
        if not repo.gated or (token and (token.speaks_for(repo.namespace) or token.user in repo.allowed_users)):
            return repo
        raise HubError(403 if token else 401, f"Access to {kind} {repo_id} is restricted.", "GatedRepo")

    def writable(self, kind: str, repo_id: str, token: Token | None, as_pull_request: bool = False) -> Repo:
        """The repo, for whoever may write to it. Anybody who may read and has a write token may open a PR."""
        repo = self.readable(kind, repo_id, token)
        writer = require_writer(token)
        if not as_pull_request and not writer.speaks_for(repo.namespace):
            raise HubError(403, f"You don't have the rights to write to {kind} {repo_id}")
        return repo

    # Uploads: the PUT of an LFS object carries no token, its URL is the permission (as a signed URL of the Hub is)

    def issue_upload_ticket(self, repo: Repo, sha256: str) -> str:
        ticket = secrets.token_urlsafe(12)
        self._upload_tickets[ticket] = (repo, sha256)
        return ticket

    def redeem_upload_ticket(self, ticket: str, content: bytes) -> str:
        """Store what was uploaded, if it is what was announced. A ticket stays good: an upload may be retried."""
        if ticket not in self._upload_tickets:
            raise HubError(403, "Request has expired")
        repo, expected = self._upload_tickets[ticket]
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise HubError(400, f"The uploaded content has the SHA-256 {actual}, announced was {expected}")
        return repo.store_blob(content)


def require_writer(token: Token | None) -> Token:
    if token is None:
        raise HubError(401, "Invalid username or password.")
    if not token.write:
        raise HubError(403, "Forbidden: this token has no write permission")
    return token


def git_oid(content: bytes) -> str:
    """The id git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
