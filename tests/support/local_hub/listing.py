"""How repos, files and folders look in the JSON of the Hub's API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .state import Commit, Repo, StoredFile, git_oid


Entry = dict[str, Any]


def repo_info(repo: Repo, commit: Commit, with_blobs: bool) -> Entry:
    siblings: list[Entry] = []
    for path, file in sorted(commit.files.items()):
        sibling: Entry = {"rfilename": path}
        if with_blobs:
            sibling |= {"size": file.size, "blobId": file.git_oid}
            if file.is_lfs:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
        siblings.append(sibling)
    return {
        "id": repo.repo_id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        **({"sdk": repo.sdk} if repo.sdk else {}),
    }


def tree_entries(commit: Commit, folder: str, recursive: bool, expand: bool) -> list[Entry]:
    """The entries under `folder` ("" is the root), each folder before what it holds."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, Entry] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            entries.setdefault(name, folder_entry(name))
        if recursive or len(parts) == 1:
            entries[path] = file_entry(path, file)
    return [expanded(entry, commit) for entry in entries.values()] if expand else list(entries.values())


def path_entries(commit: Commit, paths: Iterable[str], expand: bool) -> list[Entry]:
    """The entries of those `paths` that exist; the Hub leaves the others out."""
    entries = []
    for path in paths:
        if path in commit.files:
            entries.append(file_entry(path, commit.files[path]))
        elif any(name.startswith(path.rstrip("/") + "/") for name in commit.files):
            entries.append(folder_entry(path.rstrip("/")))
    return [expanded(entry, commit) for entry in entries] if expand else entries


def file_entry(path: str, file: StoredFile) -> Entry:
    entry: Entry = {"type": "file", "path": path, "size": file.size, "oid": file.git_oid}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry


def folder_entry(path: str) -> Entry:
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


def expanded(entry: Entry, commit: Commit) -> Entry:
    """With `expand`: the last commit. The listed one stands for it, as no history is kept by file."""
    return {**entry, "lastCommit": {"id": commit.oid, "title": commit.title, "date": commit.date}}
