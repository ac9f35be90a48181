"""`lorif-hf push`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import TOKEN
from .printing import print_line


def push(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    repo_id: Annotated[str, typer.Argument(help="Dataset repo on the Hub: user/my-index.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="For a new repo.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Another tag for the card; several may be given.")] = None,
    token: TOKEN = None,
) -> None:
    """Push an index to the Hub, in one commit. Pushing again sends only what is missing."""
    from ..index import InfluenceIndex

    commit = InfluenceIndex.from_pretrained(index).push_to_hub(
        repo_id,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        tags=tag,
    )
    print_line(commit.pr_url or commit.commit_url)
