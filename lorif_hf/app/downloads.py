"""A result as files to download: a page, a CSV, a JSON. They go when the next one comes, or when the session ends."""

import shutil
import tempfile
from pathlib import Path

from ..reports.attribution import Attribution


def write_downloads(result: Attribution) -> list[str]:
    """Write a result to a new folder under the system's one for temporary files.

    Returns:
        `list[str]`: the page, the CSV and the JSON.
    """
    folder = Path(tempfile.mkdtemp(prefix="lorif-app-"))
    paths = [folder / f"attribution.{ending}" for ending in ("html", "csv", "json")]
    try:
        for path, write in zip(paths, (result.save_html, result.to_csv, result.to_json), strict=True):
            write(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return [str(path) for path in paths]


def remove(downloads: list[str] | None) -> None:
    """Remove what [`write_downloads`] wrote."""
    if downloads:
        shutil.rmtree(Path(downloads[0]).parent, ignore_errors=True)
