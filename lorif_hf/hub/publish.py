"""Pushing an index: everything checked here first, then one atomic commit."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..errors import LorifError, PublishError
from ..progress import progress
from ..storage.files import read_head
from ..storage.layout import CARD, FOLDERS, FORMAT_VERSION, LDS, MANIFEST, FileEntry, Manifest
from ..storage.measured_lds import read_lds
from ..storage.store import Store
from .destination import Destination
from .store import REPO_TYPE, download, hub_api, retried, translated_errors


logger = logging.getLogger(__name__)

FORMAT_TAG = f"lorif-format-{FORMAT_VERSION.partition('.')[0]}"
# Folders in which a file of no manifest is an old one.
_OURS = tuple(f"{name}/" for name in FOLDERS)
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")

RenderCard = Callable[[str, str | None], str]
"""From a repo's full id and the card it has (or `None`) to the one it shall have."""


def contents(store: Store, manifest: Manifest) -> dict[str, Path]:
    """Every file of an index by name, those of the manifest checked; the manifest last, for it makes an index."""
    paths = {}
    with progress(len(manifest.files), "Checking", "files") as bar:
        for entry in manifest.files:
            paths[entry.file] = store.path(entry)
            bar.update(1)
    others = (LDS, CARD, MANIFEST) if read_lds(store, manifest) is not None else (CARD, MANIFEST)
    return paths | {name: path for name in others if (path := store.optional(name)) is not None}


def publish(store: Store, manifest: Manifest, destination: Destination, render_card: RenderCard) -> CommitInfo:
    """Push an index in one commit, so that a reader sees the old one or the new one and nothing between.

    Files that the Hub has already are not sent again: an interrupted push goes on where it stopped, and a push of an
    unchanged index makes no commit. Files of an older index that are no longer part of it are deleted. The card is
    rendered from the repo's own, or else from the one beside the index.
    """
    check_repo_id(destination.repo_id)
    paths = contents(store, manifest)
    beside = paths.pop(CARD, None)
    own_card = None if beside is None else beside.read_text(encoding="utf-8", errors="replace")
    if own_card is not None:
        rendered(render_card, destination.repo_id, own_card)  # a card that cannot be read shows before a repo is made
    repo_id, commit = push_files(
        paths,
        replace(destination, commit_message=destination.commit_message or "Upload influence index with lorif-hf"),
        lambda name, existing: render_card(name, own_card if existing is None else existing),
        ours=_OURS,
    )
    if not destination.create_pr and destination.revision in (None, "main"):
        with translated_errors(repo_id, destination.revision, token=destination.token):
            _move_format_tag(hub_api(destination.token), repo_id, commit.oid)
    return commit


def push_files(
    files: Mapping[str, Path | bytes], destination: Destination, render_card: RenderCard, *, ours: Sequence[str]
) -> tuple[str, CommitInfo]:
    """Push files and their card to a dataset repo, in one commit, after a look at what they hold.

    Args:
        files (`Mapping`): path in the repo -> file here, or content.
        ours (`Sequence[str]`): folders of the repo in which a file that is not among `files` is an old one, and goes.
        destination, render_card: as in [`publish`].

    Returns:
        The repo's full id, and the commit.
    """
    check_contents(files, destination.token)
    repo_id, head = prepare_repo(destination)
    return repo_id, _commit(repo_id, head, files, destination, render_card, ours)


def push_model_card(destination: Destination, render_card: RenderCard) -> CommitInfo:
    """Change the card of a model repo in a commit of its own; none where the change changes nothing."""
    repo_id, token, revision = destination.repo_id, destination.token, destination.revision
    with translated_errors(repo_id, revision, token=token, repo_type="model"):
        head = hub_api(token).repo_info(repo_id, revision=revision)
    return _commit(repo_id, head, {}, destination, render_card, repo_type="model")


def _commit(
    repo_id: str,
    head: Any,
    files: Mapping[str, Path | bytes],
    destination: Destination,
    render_card: RenderCard,
    ours: Sequence[str] = (),
    repo_type: str = REPO_TYPE,
) -> CommitInfo:
    """Commit files and a card onto `head`, the repo's info at the revision to push to."""
    token, revision = destination.token, destination.revision
    present = [sibling.rfilename for sibling in head.siblings or []]
    with translated_errors(repo_id, revision, token=token, repo_type=repo_type):
        existing = None
        if CARD in present:  # bytes: with the line endings that its owner chose
            existing = download(repo_id, CARD, head.sha, repo_type, token=token).read_bytes().decode()
        card = rendered(render_card, repo_id, existing).encode()
        check_contents({CARD: card}, token)
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in {**files, CARD: card}.items()
        ]
        stale = [file for file in present if file.startswith(tuple(ours)) and file not in files]
        operations += [CommitOperationDelete(file) for file in stale]
        try:
            return hub_api(token).create_commit(
                repo_id,
                operations,
                commit_message=destination.commit_message or "Upload with lorif-hf",
                commit_description=destination.commit_description,
                repo_type=repo_type,
                revision=revision,
                create_pr=destination.create_pr,
                parent_commit=None if destination.create_pr else head.sha,
            )
        except ValueError as error:
            if isinstance(error, HTTPError):
                raise
            raise PublishError(f"The Hub does not take the YAML of {CARD} ({error}): mend it by hand.") from error


def prepare_repo(destination: Destination) -> tuple[str, Any]:
    """The repo's full id and its info at the revision to push to; repo and branch are made where they do not exist.

    A name without a namespace is one of the token's user, as everywhere on the Hub.
    """
    repo_id, token, revision = destination.repo_id, destination.token, destination.revision
    check_repo_id(repo_id)
    api = hub_api(token)
    with translated_errors(repo_id, revision, token=token):
        repo_id = api.create_repo(repo_id, repo_type=REPO_TYPE, private=destination.private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type=REPO_TYPE, exist_ok=True)
        return repo_id, retried(lambda: api.repo_info(repo_id, repo_type=REPO_TYPE, revision=revision), repo_id)


def check_repo_id(repo_id: str) -> None:
    """Raises [`~lorif_hf.errors.PublishError`] where the Hub would not take the name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is no repo id ({error}): it must look like 'user/my-index'.") from None


def check_contents(files: Mapping[str, Any], token: str | bool | None) -> None:
    """See that no access token and no path of this machine is in any file (paths, or contents as bytes).

    Raises:
        [`~lorif_hf.errors.PublishError`]: names the file.
    """
    secrets = [secret.encode() for secret in {token, get_token()} if isinstance(secret, str) and len(secret) > 8]
    here = [str(place) for place in (Path.home(), Path.cwd()) if place != Path("/")]
    spellings = {os.fsencode(place) for place in here} | {json.dumps(place)[1:-1].encode() for place in here}
    places = [re.compile(rb"(?<![\w.-])" + re.escape(place) + rb"(?![\w.-])") for place in spellings]
    for name, content in files.items():
        # The owner's data may speak of any path, and a vocabulary holds all kinds of strings.
        exempt = name.endswith(".parquet") or Path(name).name.startswith(("tokenizer.json", "vocab", "merges"))
        for piece in _texts(name, content):
            if any(secret in piece for secret in secrets) or _TOKEN.search(piece):
                raise PublishError(
                    f"{name} holds an access token of Hugging Face. Take it out of the data (or build with "
                    "store_text=False), and revoke it."
                )
            if not exempt and any(place.search(piece) for place in places):
                raise PublishError(f"{name} holds a path of this machine. Take it out before you push.")


def _texts(name: str, content: Any) -> Iterable[bytes]:
    """What a file says, piece by piece. Numbers are left out."""
    if isinstance(content, bytes):
        yield content
    elif name.endswith(".safetensors"):
        yield read_head(content)
    elif name.endswith(".parquet"):
        with pq.ParquetFile(content) as table:
            for batch in table.iter_batches(columns=["example_id", "text"]):
                for column in batch.columns:
                    yield "\n".join(value for value in column.to_pylist() if value is not None).encode()
    else:
        yield Path(content).read_bytes()


def rendered(render_card: RenderCard, repo_id: str, existing: str | None) -> str:
    """A card, of the one there is.

    Raises:
        [`~lorif_hf.errors.PublishError`]: that one's YAML cannot be read.
    """
    try:
        return render_card(repo_id, existing)
    except LorifError:
        raise
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise PublishError(f"The YAML of {CARD} cannot be read ({error}): mend it by hand.") from error


def _move_format_tag(api: Any, repo_id: str, commit: str) -> None:
    """Let the tag of this format version point to the newest index of that version."""
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=REPO_TYPE).tags}
    if tags.get(FORMAT_TAG) == commit:
        return
    if FORMAT_TAG in tags:
        api.delete_tag(repo_id, tag=FORMAT_TAG, repo_type=REPO_TYPE)
    api.create_tag(repo_id, tag=FORMAT_TAG, revision=commit, repo_type=REPO_TYPE)


class EarlyUploader:
    """Context manager that uploads finished files while a build goes on. They become visible only with the commit of
    the final push.

    Args:
        folder (`Path`): the index being built.
        destination (`Destination`): where it is pushed. The repo is made at once: a wrong name or token shows before
            the work begins.
    """

    def __init__(self, folder: Path, destination: Destination):
        self.repo_id, _ = prepare_repo(destination)
        self.folder, self.token, self.revision = folder, destination.token, destination.revision
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lorif-upload")
        self._uploads: list[Future[None]] = []

    def __enter__(self) -> "EarlyUploader":
        return self

    def add(self, entry: FileEntry) -> None:
        """Upload a finished file in the background."""
        self._uploads.append(self._pool.submit(self._upload, entry))

    def _upload(self, entry: FileEntry) -> None:
        check_contents({entry.file: self.folder / entry.file}, self.token)
        operation = CommitOperationAdd(entry.file, str(self.folder / entry.file))
        with translated_errors(self.repo_id, self.revision, entry.file, self.token):
            hub_api(self.token).preupload_lfs_files(
                self.repo_id, [operation], repo_type=REPO_TYPE, revision=self.revision
            )

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Wait for the uploads. One that failed is tried again by the push, so it is only told."""
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._pool.shutdown(wait=True, cancel_futures=interrupted)
        for upload in self._uploads:
            error = None if upload.cancelled() else upload.exception()
            if isinstance(error, LorifError):
                logger.warning("A file could not be uploaded early: %s", error)
            elif error is not None:
                raise error
