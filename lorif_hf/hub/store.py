"""Indices on the Hub: resolve a revision, download and check files, read ranges of them.

An index is a dataset repo. Everything is read at one commit, so that two versions can never mix.
"""

import hashlib
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np
from huggingface_hub import HfApi, HfFileSystem, cached_assets_path, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import HubAccessError, HubConnectionError, IndexCorruptedError, IndexFormatError, IndexNotFoundError
from ..storage.files import TensorReader, header_length, parse_header, write_bytes
from ..storage.layout import CARD, LDS, MANIFEST, FactorShard, FileEntry, Manifest, TensorEntry, check_relative
from ..storage.once import Once
from ..storage.store import Store
from ..storage.system_errors import system_errors


logger = logging.getLogger(__name__)

RepoType = Literal["dataset", "model"]
REPO_TYPE: RepoType = "dataset"
DOWNLOADS = 4  # files downloaded at once
_WAITS = (0.5, 1, 2, 4)  # seconds before each new try of a request that failed on the way

T = TypeVar("T")


class RepoStore(Store):
    """An index in a repo, at one commit. Files that are needed whole are downloaded to the local Hub cache.

    Args:
        repo_id (`str`): "user/name".
        revision (`str` or `None`): branch, tag or commit; `commit` is what it was resolved to.
        repo_type (`str`, *optional*, defaults to `"dataset"`): or `"model"`.
        subfolder (`str`, *optional*): of the repo, in which the index is; a path that was checked.
        options: `token`, `cache_dir`, `force_download`, `local_files_only` of `huggingface_hub.hf_hub_download`.
    """

    repo_id: str
    commit: str

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        repo_type: RepoType = REPO_TYPE,
        subfolder: str | None = None,
        **options: Any,
    ):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise IndexNotFoundError(f"{repo_id!r} is neither a folder nor a repo id ({error}).") from None
        self._repo_type, self._subfolder = repo_type, subfolder
        self._options = options
        manifest = self._download(repo_id, MANIFEST, revision)
        depth = len(PurePosixPath(subfolder or "").parts)
        super().__init__(manifest.parent, repo_id, manifest.parents[depth].name)

    def provide(self, file: str) -> None:
        check_relative(file)
        if not (self.folder / file).exists() or self._options.get("force_download"):
            self._download(self.repo_id, file, self.commit)

    def _download(self, repo_id: str, file: str, revision: str | None) -> Path:
        return download(repo_id, file, revision, self._repo_type, subfolder=self._subfolder, **self._options)

    @abstractmethod
    def fetch(self, manifest: Manifest) -> None:
        """Download what is needed from the start. `force_download` ends with it: once is enough."""


class HubStore(RepoStore):
    """An index in a dataset repo that is downloaded file by file; the arguments are those of [`RepoStore`]."""

    def fetch(self, manifest: Manifest) -> None:
        """Download the index: the curvature first, then the shards, then what people read."""
        self.path(manifest.curvature)
        with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="lorif-download") as pool:
            list(pool.map(self.path, [*manifest.shards, *manifest.examples, *manifest.tokenizer]))
        for file in (CARD, LDS):  # the owner's words and the index's score, for a later push elsewhere
            self.optional(file)
        self._options["force_download"] = False

    def shard(self, entry: FactorShard) -> TensorReader:
        return self.mapped(entry)

    def curvature(self, entry: TensorEntry) -> TensorReader:
        return self.mapped(entry)

    def parquet(self, entry: FileEntry) -> Path:
        return self.path(entry)


class StreamingStore(RepoStore):
    """An index in a repo whose factors and examples are read by HTTP range and not kept, and whose curvature is read
    layer by layer and kept, as long as nobody needs the whole of it.

    The arguments are those of [`RepoStore`]. Tensors are kept by their hash: of the curvature in the assets' cache of
    huggingface_hub; where there is a `cache_dir`, all that are read, in its folder "lorif_hf".
    """

    def __init__(self, repo_id: str, revision: str | None, **options: Any):
        super().__init__(repo_id, revision, **options)
        self._pieces = Path(options["cache_dir"]) / "lorif_hf" if options.get("cache_dir") is not None else None
        self._filesystem = HfFileSystem(token=options.get("token"))
        self._heads: Once[FileEntry, bytes] = Once()

    def __getstate__(self) -> dict[str, Any]:
        """Without the filesystem: it would bring along what this process has listed of every repo."""
        return {name: value for name, value in self.__dict__.items() if name != "_filesystem"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._filesystem = HfFileSystem(token=self._options.get("token"))

    def fetch(self, manifest: Manifest) -> None:
        """Nothing is needed before the first query, unless the curvature is to be downloaded again."""
        if self._options["force_download"]:
            self.path(manifest.curvature)
        self._options["force_download"] = False

    def shard(self, entry: FactorShard) -> TensorReader:
        return self._remote(entry, self._pieces)

    def curvature(self, entry: TensorEntry) -> TensorReader:
        if (self.folder / entry.file).exists():
            return self.mapped(entry)
        return self._remote(entry, self._pieces or cached_assets_path("lorif_hf", "curvature", "tensors"))

    def _remote(self, entry: FactorShard | TensorEntry, pieces: Path | None) -> "RemoteTensors":
        head = self._heads.get(entry, partial(self._head, entry))
        return RemoteTensors(entry, head, partial(self._range, entry), pieces)

    def parquet(self, entry: FileEntry) -> Any:
        translated = translated_errors(self.repo_id, self.commit, entry.file)
        file = translated(self._open)(entry)
        file.read = translated(file.read)
        return file

    def _head(self, entry: FileEntry) -> bytes:
        start = self._range(entry, 0, 8)
        length = header_length(entry.file, entry.bytes, start)
        return start + self._range(entry, 8, 8 + length)

    def _range(self, entry: FileEntry, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of a file, and no others."""
        with translated_errors(self.repo_id, self.commit, entry.file), self._open(entry) as file:
            file.seek(begin)
            content = file.read(end - begin)
        if len(content) != end - begin:
            raise IndexCorruptedError(entry.file, f"the Hub gave {len(content)} bytes of {end - begin} asked for")
        return content

    def _open(self, entry: FileEntry) -> Any:
        check_relative(entry.file)
        repo = f"{'datasets/' if self._repo_type == 'dataset' else ''}{self.repo_id}@{self.commit}"
        name = "/".join(part for part in (repo, self._subfolder, entry.file) if part)
        file = self._filesystem.open(name, "rb", cache_type="none")
        if file.size != entry.bytes:
            raise IndexCorruptedError(entry.file, f"it has {file.size} bytes, the manifest says {entry.bytes}")
        return file


class RemoteTensors(TensorReader):
    """A safetensors file read by range. Its header is checked against the manifest, whole tensors against the header.

    Args:
        entry (`FactorShard` or `TensorEntry`): the file.
        head (`bytes`): its first 8 bytes and its header.
        fetch (`Callable[[int, int], bytes]`): gives bytes `begin` to `end` of it.
        pieces (`Path` or `None`): folder of tensors already read, by hash.
    """

    def __init__(
        self,
        entry: FactorShard | TensorEntry,
        head: bytes,
        fetch: Callable[[int, int], bytes],
        pieces: Path | None,
    ):
        if hashlib.sha256(head).hexdigest() != entry.header_sha256:
            raise IndexCorruptedError(entry.file, "its header is not the one that the manifest vouches for")
        super().__init__(entry.file, parse_header(entry.file, entry.bytes, head))
        self._fetch = fetch
        self._pieces = pieces
        self._whole: dict[str, bytes] = {}

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetch whole tensors, neighbours in one request, and check each."""
        self._whole |= self._fetched(name for name in names if name not in self._whole)

    def _fetched(self, names: Iterable[str]) -> dict[str, bytes]:
        """Whole tensors, each with the hash that the header says."""
        wanted = list(names)
        fetched = {name: piece for name in wanted if (piece := self._kept(name)) is not None}
        for run in self.runs(name for name in wanted if name not in fetched):
            begin = self.span(run[0]).begin
            content = memoryview(self._fetch(begin, self.span(run[-1]).end))
            for name in run:
                span = self.span(name)
                piece = bytes(content[span.begin - begin : span.end - begin])
                if hashlib.sha256(piece).hexdigest() != span.sha256:
                    raise IndexCorruptedError(self.file, f"tensor '{name}' did not arrive as it was written")
                fetched[name] = piece
                if self._pieces is not None:
                    write_bytes(self._pieces / str(span.sha256), piece)
        return fetched

    def _kept(self, name: str) -> bytes | None:
        span = self.span(name)
        path = self._pieces / span.sha256 if self._pieces is not None and span.sha256 else None
        if path is None or not path.is_file() or path.stat().st_size != span.end - span.begin:
            return None
        content = path.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == span.sha256 else None

    def _piece(self, name: str, begin: int, end: int) -> np.ndarray:
        span = self.span(name)
        if name in self._whole:
            content = self._whole[name][begin - span.begin : end - span.begin]
        elif (begin, end) == (span.begin, span.end):
            content = self._fetched([name])[name]
        else:
            content = self._fetch(begin, end)
        return np.frombuffer(bytearray(content), dtype=np.uint8)  # a copy that may be written to, as torch wants


def hub_api(token: str | bool | None = None) -> HfApi:
    """The one client for everything, named to the Hub."""
    return HfApi(token=token, library_name="lorif_hf", library_version=version("lorif-hf"))


def download(repo_id: str, file: str, revision: str | None, repo_type: str = REPO_TYPE, **options: Any) -> Path:
    """`hf_hub_download` that survives lost connections and raises our own errors."""
    cache = Path(options.get("cache_dir") or constants.HF_HUB_CACHE)
    path = f"{options['subfolder']}/{file}" if options.get("subfolder") else file
    with system_errors(cache), translated_errors(repo_id, revision, path, options.get("token"), repo_type):
        fetch = partial(hub_api().hf_hub_download, repo_id, file, repo_type=repo_type, revision=revision, **options)
        return Path(retried(fetch, file))


def retried(request: Callable[[], T], what: str) -> T:
    """The result of a request, tried again after a lost connection or a server error (5xx)."""
    for wait in (*_WAITS, None):
        try:
            return request()
        except HTTPError as error:
            response = getattr(error, "response", None)
            if wait is None or (response is not None and response.status_code < 500):
                raise
            logger.warning("%s: %s; trying again in %g s.", what, error, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


@contextmanager
def translated_errors(
    repo_id: str,
    revision: str | None,
    file: str | None = None,
    token: str | bool | None = None,
    repo_type: str = REPO_TYPE,
) -> Iterator[None]:
    """Turn the errors of huggingface_hub into ours, each with the next step in it."""
    try:
        yield
    except (HTTPError, FileNotFoundError, OfflineModeIsEnabled, RuntimeError) as raised:
        cause = raised.__cause__
        # HfFileSystem and uploads wrap what happened.
        error = cause if isinstance(cause, HTTPError) and not isinstance(raised, HTTPError) else raised
        if isinstance(error, RuntimeError) and "uploading" not in str(error):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        ours: Exception
        if isinstance(error, GatedRepoError):
            ours = HubAccessError(f"'{repo_id}' is gated: ask for access on its page, then log in (hf auth login).")
        elif isinstance(error, RepositoryNotFoundError):
            hint = ""
            with suppress(Exception):  # a hint must not hide the error it is for
                if repo_type == REPO_TYPE and hub_api(token).repo_exists(repo_id, repo_type="model"):
                    hint = (
                        " There is a model repo of that name; an index is a dataset repo, unless it lies in a model's "
                        "(repo_type='model', subfolder=...): ask the model's owner where it is."
                    )
            ours = IndexNotFoundError(
                f"No {repo_type} repo '{repo_id}' that this {'token' if token else 'machine'} can see: it does not "
                f"exist, or it is private. Check the name, log in (hf auth login) or pass token=.{hint}"
            )
        elif isinstance(error, RevisionNotFoundError):
            ours = IndexNotFoundError(
                f"'{repo_id}' has no revision '{revision}': pass a branch, a tag or a commit that it has, or leave it "
                "out."
            )
        elif isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            ours = HubConnectionError(
                f"{file or repo_id} of '{repo_id}' is not in the local cache and the Hub cannot be reached (offline, "
                "or local_files_only=True). Connect, or download the index once while you are connected."
            )
        elif isinstance(error, (EntryNotFoundError, FileNotFoundError)) and (file or "").endswith(MANIFEST):
            ours = IndexFormatError(
                f"The {repo_type} repo '{repo_id}' is no lorif-hf index: it has no {file}. Check the name, the "
                "subfolder or the revision."
            )
        elif isinstance(error, (EntryNotFoundError, FileNotFoundError)):
            ours = IndexCorruptedError(str(file), f"it is missing in '{repo_id}'")
        elif status == 401:
            ours = HubAccessError(f"The Hub does not accept this token for '{repo_id}': log in again (hf auth login).")
        elif status == 403:
            ours = HubAccessError(
                f"This token may not do that with '{repo_id}': it needs the write role, and the repo must be yours or "
                "your organisation's."
            )
        elif status == 412:
            ours = HubConnectionError(f"'{repo_id}' was changed by someone else meanwhile: push again.")
        else:  # not the client's own words: they may hold the signed address of an upload
            what = f"status {status}" if status else type(error).__name__
            ours = HubConnectionError(
                f"The Hub failed at {file or repo_id} ({what}). Try again: what is done is kept."
            )
        raise ours from raised
