"""Factor files as the manifest lists them."""

from pathlib import Path

from lorif_hf.storage.files import file_entry, header_sha256
from lorif_hf.storage.layout import FactorShard


def shard_entry(folder: Path, file: str, start: int, rows: int) -> FactorShard:
    """The entry of a factor file that was just written."""
    entry = file_entry(folder, file)
    return FactorShard(entry.file, entry.bytes, entry.sha256, start, rows, header_sha256(folder / file))
