"""Loading, saving and pushing an index: the part of `InfluenceIndex` that deals with folders and the Hub."""

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, constants
from torch import Tensor

from ..checks import one_of
from ..config import InfluenceConfig
from ..errors import BuildFolderError, ConfigError, IndexCorruptedError, IndexFormatError, PublishError
from ..progress import progress
from ..registry import CODECS, CURVATURES, LAYER_KINDS
from ..storage.claim import INDEX_FOLDER, remove_left_over
from ..storage.files import file_sha256, verified, write_atomically, write_text
from ..storage.layout import CARD, MANIFEST, STAGING, FileEntry, Manifest, inside, is_newer, read_manifest
from ..storage.measured_lds import LDSRecord, read_lds, write_lds
from ..storage.store import LocalStore, Store
from .cards import index_card, model_card_section, repo_in_card
from .destination import Destination
from .publish import contents, publish, push_model_card
from .store import HubStore, RepoType, StreamingStore


Index = TypeVar("Index", bound="StoredIndex")


class StoredIndex:
    """An index where it is stored: in a folder or in a dataset repo of the Hub.

    It pickles and copies, also after queries: a copy knows where the files are, and reads them itself. A pickle holds
    the `token` that the index was loaded with.

    Attributes:
        path (`Path`): the index's folder; of an index from the Hub, its snapshot in the local cache.
        config (`InfluenceConfig`): what it was built with.
        manifest (`Manifest`): every file of it, the layers and the model's identity.
        repo_id (`str` or `None`): the Hub repo it came from.
        commit (`str` or `None`): the commit that its revision was resolved to.
    """

    def __init__(self, store: Store, rows: Tensor | None = None):
        self.path = store.folder
        self.manifest = read_manifest(self.path)
        _check_kinds(self.manifest)
        try:
            self.config = InfluenceConfig.from_dict(self.manifest.config, is_newer(self.manifest.format_version))
        except ConfigError as error:
            raise IndexFormatError(f"{MANIFEST} of {self.path} holds no valid config: {error}") from error
        self.repo_id, self.commit = store.repo_id, store.commit
        self._store = store
        self._rows = rows
        self._token: str | bool | None = None  # the one it was loaded with; a model loaded by name uses it too

    @classmethod
    def from_pretrained(
        cls: type[Index],
        path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        repo_type: RepoType = "dataset",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        streaming: bool = False,
    ) -> Index:
        """Load an index from a folder or from the Hub.

        Args:
            path (`str` or `os.PathLike`): a folder, or the id of a dataset repo, "user/my-index".
            subfolder (`str`, *optional*): where in the folder or repo the index is: "influence".
            repo_type (`str`, *optional*, defaults to `"dataset"`): `"model"` for an index in a folder of a model's
                repo.
            revision (`str`, *optional*): branch, tag or commit; what it was resolved to is in `index.commit`.
            token (`str` or `bool`, *optional*): Hub token; by default the one you logged in with.
            cache_dir (`str` or `os.PathLike`, *optional*): the Hub cache to use. With `streaming=True` the tensors
                read are kept in it too; without one nothing is kept.
            force_download (`bool`, *optional*, defaults to `False`): download again what is in the cache.
            local_files_only (`bool`, *optional*, defaults to `False`): use the cache alone.
            streaming (`bool`, *optional*, defaults to `False`): download the manifest only. A query reads the factors
                that it needs by HTTP range, two shards of the wanted modules in memory at most. The curvature
                (whiteners) is downloaded with the first query of all layers, and may be most of a small index; a query
                with `modules=` downloads that of these layers alone.

        Raises:
            [`~lorif_hf.errors.IndexFormatError`]: the folder or repo is no index that this version can read.
            [`~lorif_hf.errors.UnknownKindError`]: its codec, its curvature or a kind of its layers is somebody's own:
            says what to import.
            [`~lorif_hf.errors.IndexCorruptedError`]: a file is not what the manifest says; names it.
            [`~lorif_hf.errors.HubError`]: the repo, the revision or the Hub cannot be reached; says what to do.

        Example:

        ```python
        >>> index = InfluenceIndex.from_pretrained("my-index")
        >>> index = InfluenceIndex.from_pretrained("me/my-index", streaming=True)
        >>> index = InfluenceIndex.from_pretrained("me/my-model", repo_type="model", subfolder="influence")
        ```
        """
        one_of(repo_type, "repo_type", RepoType, ConfigError)
        subfolder = _plain(Path(path), subfolder)
        folder = Path(path, subfolder or "")
        if (folder / MANIFEST).is_file():
            return cls(LocalStore(folder))
        name = os.fspath(path)
        if Path(path).is_dir() or not isinstance(path, str) or folder.is_absolute() or name.startswith("."):
            what = "holds no index" if folder.is_dir() else "does not exist"
            raise IndexFormatError(f"{folder} {what}: expected a folder with {MANIFEST}, or a repo id of the Hub.")
        offline = local_files_only or constants.HF_HUB_OFFLINE
        store = (StreamingStore if streaming and not offline else HubStore)(
            name,
            revision,
            repo_type=repo_type,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        index = cls(store)
        store.fetch(index.manifest)
        index._token = token
        return index

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> None:
        """Copy the index, every file checked, to another folder.

        A copy that was interrupted goes on when called again; what is there and undamaged is not copied again.

        Args:
            path (`str` or `os.PathLike`): the folder; absent, empty, or holding this very index, whole or in part.
            push_to_hub (`bool`, *optional*, defaults to `False`): push it as well.
            repo_id (`str`, *optional*): where to; by default the folder's name.
            options: those of [`~InfluenceIndex.push_to_hub`].

        Raises:
            [`~lorif_hf.errors.BuildFolderError`]: the folder holds something else.
            [`~lorif_hf.errors.StorageError`]: the disk is full, or nothing can be written there.

        Example:

        ```python
        >>> InfluenceIndex.from_pretrained("me/my-index").save_pretrained("my-copy")
        ```
        """
        self._refuse_selection()
        target = Path(path)
        if target.resolve() != self.path.resolve():
            self._copy(target)
        if push_to_hub:
            self.push_to_hub(repo_id or target.name, **options)

    def _copy(self, target: Path) -> None:
        """Bring the index to a folder, the manifest last."""
        INDEX_FOLDER.check(target)
        if (target / MANIFEST).exists():
            if (target / MANIFEST).read_bytes() != (self.path / MANIFEST).read_bytes():
                raise BuildFolderError(f"{target} already holds another index. Choose another folder or delete it.")
            remove_left_over(target)
            shutil.rmtree(target / STAGING, ignore_errors=True)  # a copy was stopped at its very end
            copied: AbstractContextManager[None] = nullcontext()
        else:
            plan = {"build": f"a copy of {file_sha256(self.path / MANIFEST)}"}
            other = "an unfinished build or copy of another index. Choose another folder or delete this one."
            copied = INDEX_FOLDER.claimed(
                target, plan, lambda begun: None if begun["build"] == plan["build"] else other
            )
        files = contents(self._store, self.manifest)
        entries = {entry.file: entry for entry in self.manifest.files}
        with copied, progress(len(files), "Copying", "files") as bar:
            for name, source in files.items():
                kept = name in (CARD, MANIFEST) or (name in entries and _is_good(target, entries[name]))
                if not kept or not (target / name).exists():
                    write_atomically(target / name, partial(shutil.copyfile, source))
                bar.update(1)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        commit_description: str | None = None,
        tags: Sequence[str] | None = None,
        model_id: str | None = None,
    ) -> CommitInfo:
        """Push the index to a dataset repo, in one commit; what the Hub has already is not sent again.

        The repo gets a card, whose own words you may change: they survive a later push. A push of an unchanged index
        makes no commit.

        Args:
            repo_id (`str`): "user/my-index", or a name of your own namespace; made where it does not exist.
            private (`bool`, *optional*): whether a new repo is private; by default as your account has it.
            token (`str` or `bool`, *optional*): Hub token; by default the one you logged in with.
            revision (`str`, *optional*): branch to push to, made where it does not exist; by default `main`.
            create_pr (`bool`, *optional*, defaults to `False`): open a pull request instead.
            commit_message, commit_description (`str`, *optional*): of the commit.
            tags (`Sequence[str]`, *optional*): more tags for the card.
            model_id (`str`, *optional*): the repo of the model that was indexed, for the card; the index itself only
                knows which model the training began with.

        Returns:
            `CommitInfo`: the new commit, or the repo's present one where nothing changed.

        Raises:
            [`~lorif_hf.errors.PublishError`], [`~lorif_hf.errors.IndexCorruptedError`]: found before the first byte
            leaves.
            [`~lorif_hf.errors.HubError`]: says what to do; pushing again goes on where it stopped.

        Example:

        ```python
        >>> index.push_to_hub("me/my-index", private=True, model_id="me/my-model")
        ```
        """
        self._refuse_selection()
        message = commit_message, commit_description
        return self._push(Destination(repo_id, private, token, revision, create_pr, *message, model_id), tags or ())

    def _push(self, destination: Destination, tags: Sequence[str] = ()) -> CommitInfo:
        def card(name: str, existing: str | None) -> str:
            return index_card(self.manifest, self.config, name, existing, tags, destination.model_id, self.lds)

        return publish(self._store, self.manifest, destination, card)

    @property
    def lds(self) -> LDSRecord | None:
        """The linear datamodeling score that was measured of this index, where one was."""
        return read_lds(self._store, self.manifest)

    def save_lds(self, record: LDSRecord) -> None:
        """Keep a linear datamodeling score with the index: in `evaluation/lds.json`, and as a line of its card.

        Raises:
            [`~lorif_hf.errors.PublishError`]: the index lies in the cache of the Hub, which must stay as it is.

        Example:

        ```python
        >>> bank = RetrainBank.from_pretrained("me/my-bank")
        >>> index.save_lds(lds_record(index, bank, evaluate_lds(index, bank, "me/my-model")))
        ```
        """
        self._refuse_selection()
        if self.repo_id is not None:
            raise PublishError(
                f"The score was not kept: {self.repo_id} lies in the Hub's cache. Copy it with save_pretrained() to a "
                "folder, evaluate it there and push it."
            )
        remove_left_over(self.path)
        write_lds(self._store, record)
        path = self._store.optional(CARD)
        card = None if path is None else path.read_text(encoding="utf-8")
        name = repo_in_card(card or "") or "user/my-index"
        write_text(self.path / CARD, index_card(self.manifest, self.config, name, card, lds=record))

    def push_model_card_section(
        self,
        model_id: str,
        *,
        index_id: str | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Add the section "This model's training data can be queried" to the card of a model repo.

        Args:
            model_id (`str`): the model repo.
            index_id (`str`, *optional*): the repo of this index; by default where it was loaded from.
            token, revision, create_pr: as in [`~InfluenceIndex.push_to_hub`].

        Example:

        ```python
        >>> InfluenceIndex.from_pretrained("me/my-index").push_model_card_section("me/my-model")
        ```
        """
        repo_id = index_id or self.repo_id
        if repo_id is None:
            raise PublishError(
                "This index was not loaded from the Hub: pass index_id=, the repo that people can load."
            )
        message = "Say that the training data can be queried"
        return push_model_card(
            Destination(model_id, None, token, revision, create_pr, message),
            lambda name, card: model_card_section(self.manifest, self.config, repo_id, card or "", name),
        )

    def _refuse_selection(self) -> None:
        if self._rows is not None:
            raise PublishError("A selection of rows is a view: save or push the index that it was selected from.")


def _plain(root: Path, subfolder: str | None) -> str | None:
    """A subfolder of a folder or repo, which it may not lead out of."""
    if subfolder is None or subfolder == "":
        return None
    try:
        plain = subfolder.rstrip("/")
        inside(root, plain)
    except (IndexCorruptedError, AttributeError, TypeError):
        raise IndexFormatError(
            f"subfolder={subfolder!r} must be a plain path inside the repo or folder, such as 'influence'."
        ) from None
    return plain


def _is_good(folder: Path, entry: FileEntry) -> bool:
    try:
        return verified(folder, entry).is_file()
    except IndexCorruptedError:
        return False


def _check_kinds(manifest: Manifest) -> None:
    """See that the kinds without which an index cannot be read are registered here.

    Its task is not among them: a query may come with another.
    """
    named = [(CODECS, manifest.config.get("codec")), (CURVATURES, manifest.config.get("curvature"))]
    named += [(LAYER_KINDS, kind) for kind in sorted({module.kind for module in manifest.modules})]
    for kinds, name in named:
        if isinstance(name, str):  # what is not even a name is for the config to refuse
            kinds.get(name, manifest.extensions.get(name))
