"""Arguments and options that several commands have."""

from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from ..index import InfluenceIndex

INDEX = Annotated[str, typer.Argument(help="Folder of the index, or its repo id on the Hub.")]
MODEL = Annotated[str, typer.Argument(help="The model that was indexed: a folder or its Hub id.")]
REVISION = Annotated[str | None, typer.Option(help="Branch, tag or commit of the index.")]
TOKEN = Annotated[
    str | None,
    typer.Option(help="Hub token; by default the one you logged in with.", envvar="HF_TOKEN", show_envvar=True),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
DEVICE = Annotated[
    str | None, typer.Option(help='Where the model runs, like "cuda:1" or "cpu"; by default a GPU where there is one.')
]


def loaded_index(index: str, revision: str | None, token: str | None) -> "InfluenceIndex":
    """An index, of which the factors are read when they are asked for."""
    from ..index import InfluenceIndex

    return InfluenceIndex.from_pretrained(index, revision=revision, token=token, streaming=True)
