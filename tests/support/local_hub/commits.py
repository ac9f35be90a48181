"""The commit endpoint's payload: newline-delimited JSON, a header and one operation per line."""

from __future__ import annotations

import base64
import json
from typing import Any

from .state import Commit, HubError, Repo, StoredFile, Token


Files = dict[str, StoredFile]


def commit_payload(repo: Repo, revision: str, payload: bytes, author: Token, create_pr: bool) -> tuple[Commit, int]:
    """Apply a payload to the head of `revision`; return the commit and the number of its pull request (or 0).

    All or nothing: the ref moves only when every operation was accepted.
    """
    head = _head(repo, revision, create_pr)
    operations = [json.loads(line) for line in payload.splitlines() if line.strip()]
    header: dict[str, Any] = next((op["value"] for op in operations if op["key"] == "header"), {})
    if header.get("parentCommit") not in (None, head.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for operation in operations:
        _apply(repo, files, operation["key"], operation["value"])
    commit = repo.add_commit(head, files, author.user, header.get("summary", ""), header.get("description", ""))
    if create_pr:
        return commit, repo.open_pull_request(commit)
    repo.move_ref(revision, commit)
    return commit, 0


def _head(repo: Repo, revision: str, create_pr: bool) -> Commit:
    """Only a branch or a pull request can be committed to; a pull request can start from anything."""
    commit = repo.resolve(revision)
    if not create_pr and revision not in repo.branches and revision not in repo.pull_requests:
        raise HubError(400, f"Cannot commit to {revision}: it is not a branch")
    return commit


def _apply(repo: Repo, files: Files, key: str, value: dict[str, Any]) -> None:
    if key == "header":
        return
    path: str = value["path"]
    if key == "file":
        files[path] = repo.store_regular(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[path] = repo.lfs_file(value["oid"])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        _delete_folder(files, path)
    elif key == "copyFile":
        source = repo.resolve(value["srcRevision"]).files if value.get("srcRevision") else files
        if value["src"] not in source:
            raise HubError(404, f"A file with this name doesn't exist: {value['src']}", "EntryNotFound")
        files[path] = source[value["src"]]
    else:
        raise HubError(400, f"Unknown operation: {key}")


def _delete_folder(files: Files, path: str) -> None:
    inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
    if not inside:
        raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
    for name in inside:
        del files[name]
