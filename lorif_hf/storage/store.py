"""Where the files of an index are: in a folder here; the Hub's stores build on this one."""

from pathlib import Path
from typing import Any

from .files import TensorFile, TensorReader, verified
from .layout import FactorShard, FileEntry, inside


class LocalStore:
    """An index in a folder.

    Args:
        folder (`Path`): the index.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[FileEntry, TensorFile] = {}

    def path(self, entry: FileEntry) -> Path:
        """The path of a file, checked against its entry once per process.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`]: it is not what the entry says.
        """
        return verified(self.folder, entry)

    def optional(self, file: str) -> Path | None:
        """The path of a file for which the manifest does not vouch, where there is one."""
        path = inside(self.folder, file)
        return path if path.is_file() else None

    def tensors(self, entry: FileEntry) -> TensorReader:
        """The tensors of a file. A shard is mapped as long as any of its tensors is held, not for good."""
        if entry not in self._files:
            self.path(entry)
            opened = TensorFile(self.folder, entry)
            if isinstance(entry, FactorShard):
                return opened
            self._files[entry] = opened
        return self._files[entry]

    def parquet(self, entry: FileEntry) -> Any:
        """A path or an open file for `pyarrow.parquet.ParquetFile`."""
        return self.path(entry)
