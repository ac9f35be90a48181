"""Where the files of an index are: in a folder here, or in a repo of the Hub (`lorif_hf.hub.store`)."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ..errors import HubConnectionError, IndexCorruptedError
from .files import TensorFile, TensorReader, verified
from .layout import FactorShard, FileEntry, TensorEntry, inside
from .once import Once


class Store(ABC):
    """The files of an index. A kind of store says how a file gets into the folder, and how shards and tables are read.

    Args:
        folder (`Path`): the index, or as much of it as is here.
        repo_id (`str`, *optional*): the Hub repo it comes from.
        commit (`str`, *optional*): the commit of that repo.
    """

    def __init__(self, folder: Path, repo_id: str | None = None, commit: str | None = None):
        self.folder, self.repo_id, self.commit = folder, repo_id, commit
        self._kept: Once[tuple[TensorEntry, bool], TensorReader] = Once()

    @abstractmethod
    def provide(self, file: str) -> None:
        """Bring a file into the folder, unless it is there.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`]: there is none, or its path leads out of the index.
            [`~lorif_hf.errors.HubError`]: it cannot be had now.
        """

    @abstractmethod
    def shard(self, entry: FactorShard) -> TensorReader:
        """The tensors of a factor file."""

    @abstractmethod
    def curvature(self, entry: TensorEntry) -> TensorReader:
        """The tensors of the curvature file."""

    @abstractmethod
    def parquet(self, entry: FileEntry) -> Any:
        """A path or an open file for `pyarrow.parquet.ParquetFile`."""

    def path(self, entry: FileEntry) -> Path:
        """The path of a file, checked against its entry once per process.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`]: it is not what the entry says.
        """
        self.provide(entry.file)
        return verified(self.folder, entry)

    def optional(self, file: str) -> Path | None:
        """The path of a file for which the manifest does not vouch; `None` where it is not there or out of reach."""
        try:
            self.provide(file)
        except (IndexCorruptedError, HubConnectionError):
            pass
        path = inside(self.folder, file)
        return path if path.is_file() else None

    def tensors(self, entry: FactorShard | TensorEntry) -> TensorReader:
        """The tensors of a file. A shard is open as long as any of its tensors is held, the curvature for good."""
        if isinstance(entry, FactorShard):
            return self.shard(entry)
        here = (self.folder / entry.file).exists()  # a file that was read in pieces may be here by now
        return self._kept.get((entry, here), lambda: self.curvature(entry))

    def mapped(self, entry: FileEntry) -> TensorReader:
        """The tensors of a file in the folder, checked like its [`~Store.path`] and mapped to memory."""
        self.provide(entry.file)
        return TensorFile(self.folder, entry)


class LocalStore(Store):
    """An index in a folder.

    Args:
        folder (`Path`): the index.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)

    def provide(self, file: str) -> None:
        """Nothing to bring: all files of the index are here."""

    def shard(self, entry: FactorShard) -> TensorReader:
        return self.mapped(entry)

    def curvature(self, entry: TensorEntry) -> TensorReader:
        return self.mapped(entry)

    def parquet(self, entry: FileEntry) -> Path:
        return self.path(entry)
