"""`lorif-hf`: look at an index, check it, query it and push it, from the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .attribution import shorten
from .errors import LorifError
from .index import InfluenceIndex


app = typer.Typer(
    help="Which training examples made my model say this?", no_args_is_help=True, pretty_exceptions_enable=False
)

INDEX = Annotated[str, typer.Argument(help="Folder of the index, or its repo id on the Hub.")]
REVISION = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
TOKEN = Annotated[
    str | None, typer.Option(help="Hub token; by default the one you logged in with.", envvar="HF_TOKEN")
]


@app.command()
def info(index: INDEX, revision: REVISION = None, token: TOKEN = None) -> None:
    """Say what an index is. Downloads the manifest and the curvature only."""
    loaded = _load(index, revision, token)
    manifest = loaded.manifest
    table = Table("", "", show_header=False)
    rows = {
        "model": manifest.model.get("name") or manifest.model.get("model_class"),
        "examples": f"{manifest.num_examples:,}",
        "layers": f"{len(manifest.modules)}, the first is {manifest.modules[0].name}",
        "objective": manifest.objective,
        "bytes per example": f"{loaded.bytes_per_example:,.0f}",
        "bytes in all": f"{sum(entry.bytes for entry in manifest.files):,}",
        "format version": manifest.format_version,
        "commit": loaded.commit or "(a local folder)",
        **loaded.config.to_dict(),
    }
    for name, value in rows.items():
        table.add_row(name, Text(shorten(str(value), 200)))
    Console().print(table)


@app.command()
def verify(index: INDEX, revision: REVISION = None, token: TOKEN = None) -> None:
    """Read every file of an index and check it against the manifest."""
    _run(lambda: _load(index, revision, token).verify())
    Console().print("Every file is as it was written.")


@app.command()
def attribute(
    index: INDEX,
    model: Annotated[str, typer.Argument(help="The model that was indexed: a folder or its Hub id.")],
    query: Annotated[str, typer.Argument(help="The text to attribute, or the prompt where --completion is given.")],
    completion: Annotated[str | None, typer.Option(help="Measure this completion of the prompt.")] = None,
    top_k: Annotated[int, typer.Option(help="How many examples.", min=1)] = 10,
    html: Annotated[Path | None, typer.Option(help="Write the result to this page as well.")] = None,
    revision: REVISION = None,
    token: TOKEN = None,
) -> None:
    """Rank the training examples behind a text."""
    asked = query if completion is None else (query, completion)
    result = _run(lambda: _load(index, revision, token).attribute(model, asked, top_k=top_k))
    table = Table("score", "row", "id", "training example", title=Text(shorten(result.queries[0], 200)))
    for row in result.to_list():
        identity, text = (Text(shorten(row[name], 300)) for name in ("example_id", "text"))
        table.add_row(f"{row['score']:+.4g}", str(row["row"]), identity, text)
    Console().print(table)
    if html is not None:
        _run(lambda: result.save_html(html))


@app.command()
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
    commit = _run(
        lambda: InfluenceIndex.from_pretrained(index).push_to_hub(
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            tags=tag,
        )
    )
    Console().print(commit.pr_url or commit.commit_url, soft_wrap=True)


def _load(index: str, revision: str | None, token: str | None) -> InfluenceIndex:
    return _run(lambda: InfluenceIndex.from_pretrained(index, revision=revision, token=token, streaming=True))


def _run(work):  # type: ignore[no-untyped-def]
    """What can go wrong with names, files and the Hub is for people: the message alone, and exit status 1."""
    try:
        return work()
    except (LorifError, OSError) as error:
        shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(error))
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), shown), soft_wrap=True)
        raise typer.Exit(1) from None
