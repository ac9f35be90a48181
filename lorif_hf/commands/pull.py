"""`lorif-hf pull`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import REVISION, TOKEN
from .printing import print_line


def pull(
    repo_id: Annotated[str, typer.Argument(help="Dataset repo on the Hub: user/my-index.")],
    path: Annotated[
        Path | None, typer.Argument(help="Folder for the index; by default the repo's name, here.")
    ] = None,
    revision: REVISION = None,
    token: TOKEN = None,
) -> None:
    """Bring an index from the Hub into a folder, every file checked. Called again, it goes on where it stopped."""
    from ..index import InfluenceIndex
    from ..storage.claim import INDEX_FOLDER

    folder = Path(repo_id.rpartition("/")[2]) if path is None else path
    INDEX_FOLDER.check(folder)
    InfluenceIndex.from_pretrained(repo_id, revision=revision, token=token).save_pretrained(folder)
    print_line(str(folder))
