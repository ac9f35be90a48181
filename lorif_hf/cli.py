"""`lorif-hf`: look at an index, check it, query it and push it, from the command line."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from .errors import LorifError
from .estimating.empty_models import empty_model
from .estimating.tables import estimate_table, machine_of
from .index import InfluenceIndex
from .reports.attribution import shorten


class Commands(TyperGroup):
    """What can go wrong with names, files and the Hub is for people: the message alone, and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (LorifError, OSError) as error:
            shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(error))
            Console(stderr=True).print(Text.assemble(("error: ", "bold red"), shown), soft_wrap=True)
            raise typer.Exit(1) from None


HELP = "Which training examples made my model say this?"
app = typer.Typer(cls=Commands, help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
evaluate = typer.Typer(help="Measure how good an index is.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")

INDEX = Annotated[str, typer.Argument(help="Folder of the index, or its repo id on the Hub.")]
MODEL = Annotated[str, typer.Argument(help="The model that was indexed: a folder or its Hub id.")]
REVISION = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
TOKEN = Annotated[
    str | None, typer.Option(help="Hub token; by default the one you logged in with.", envvar="HF_TOKEN")
]


@app.command()
def info(index: INDEX, revision: REVISION = None, token: TOKEN = None) -> None:
    """Say what an index is. Downloads the manifest and the curvature only."""
    loaded = _load(index, revision, token)
    manifest, score = loaded.manifest, loaded.lds
    rows = {
        "model": manifest.model.get("name") or manifest.model.get("model_class"),
        "examples": f"{manifest.num_examples:,}",
        "layers": f"{len(manifest.modules)}, the first is {manifest.modules[0].name}",
        "coverage": str(loaded.coverage) if loaded.coverage.trained else "not known",
        "objective": manifest.objective + (", one row at a time" if manifest.alone else ""),
        "bytes per example": f"{loaded.bytes_per_example:,.0f}",
        "bytes in all": f"{sum(entry.bytes for entry in manifest.files):,}",
        "LDS": "not measured" if score is None else f"{score.mean:.3f}",
        "format version": manifest.format_version,
        "commit": loaded.commit or "(a local folder)",
        **loaded.config.to_dict(),
    }
    _print_rows(rows)


@app.command()
def verify(index: INDEX, revision: REVISION = None, token: TOKEN = None) -> None:
    """Read every file of an index and check it against the manifest."""
    _load(index, revision, token).verify()
    Console().print("Every file is as it was written.")


@app.command()
def attribute(
    index: INDEX,
    model: MODEL,
    query: Annotated[str, typer.Argument(help="The text to attribute, or the prompt where --completion is given.")],
    completion: Annotated[str | None, typer.Option(help="Measure this completion of the prompt.")] = None,
    top_k: Annotated[int, typer.Option(help="How many examples.", min=1)] = 10,
    html: Annotated[Path | None, typer.Option(help="Write the result to this page as well.")] = None,
    revision: REVISION = None,
    token: TOKEN = None,
) -> None:
    """Rank the training examples behind a text."""
    asked = query if completion is None else (query, completion)
    result = _load(index, revision, token).attribute(model, asked, top_k=top_k)
    table = Table("score", "row", "id", "training example", title=Text(shorten(result.queries[0], 200)))
    for row in result.to_list():
        identity, text = (Text(shorten(row[name], 300)) for name in ("example_id", "text"))
        table.add_row(f"{row['score']:+.4g}", str(row["row"]), identity, text)
    Console().print(table)
    if html is not None:
        result.save_html(html)


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
    commit = InfluenceIndex.from_pretrained(index).push_to_hub(
        repo_id,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        tags=tag,
    )
    Console().print(commit.pr_url or commit.commit_url, soft_wrap=True)


@app.command()
def estimate(
    model: Annotated[str, typer.Argument(help="A folder or Hub id of a model or adapter; only its config is read.")],
    num_examples: Annotated[int, typer.Option(help="N, rows of the training set.", min=1)] = 10_000,
    length: Annotated[int, typer.Option(help="Tokens per example.", min=1)] = 512,
    batch_size: Annotated[int, typer.Option(help="Examples that go through the model at once.", min=1)] = 8,
    flops: Annotated[
        float | None, typer.Option(help="Sustained operations a second, like 1e14; by default, this machine's.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help='Like "80GB"; by default, this machine\'s.')] = None,
    disk: Annotated[str | None, typer.Option(help='Like "1TB"; by default, what is free here.')] = None,
    token: TOKEN = None,
) -> None:
    """Say what an index of a model would cost, for each preset, without loading its weights."""
    machine = machine_of(flops, memory, disk)
    laid_out = empty_model(model, token)
    table, notes = estimate_table(laid_out, model, num_examples, length, machine, batch_size)
    Console().print(table)
    for note in notes:
        Console().print(Text(note), soft_wrap=True)


@evaluate.command()
def lds(
    index: INDEX,
    bank: Annotated[str, typer.Argument(help="Bank of retrained models: a folder or its repo id on the Hub.")],
    model: MODEL,
    queries: Annotated[
        Path | None,
        typer.Argument(help="The bank's queries: .txt (one a line), .jsonl or .json. By default those in the bank."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.", min=0.01, max=0.99)] = 0.95,
    revision: REVISION = None,
    token: TOKEN = None,
) -> None:
    """Linear datamodeling score: do the scores foretell retraining? It is kept in an index that is a folder."""
    from .evaluation import RetrainBank, evaluate_lds
    from .evaluation.evaluate_index import lds_record, read_query_file

    loaded = _load(index, revision, token)
    truth = RetrainBank.from_pretrained(bank, token=token)
    asked = None if queries is None else read_query_file(queries)
    result = evaluate_lds(loaded, truth, model, asked, confidence=confidence)
    record = lds_record(loaded, truth, result)
    span = f"{100 * confidence:g}% interval over"
    agreement = "one seed" if record.seed_agreement is None else f"{record.seed_agreement:.4f}"
    rows = {
        "LDS": f"{result.mean:.4f}",
        f"{span} queries": "{:.4f} to {:.4f}".format(*result.query_interval),
        f"{span} subsets": "{:.4f} to {:.4f}".format(*result.subset_interval),
        "two seeds of the ground truth": agreement,
        "queries": f"{record.num_queries} ({result.num_constant} of constant loss, left out)",
        "subsets": f"{record.num_subsets} x {record.num_seeds} seed(s)",
    }
    _print_rows(rows)
    if loaded.repo_id is None:
        loaded.save_lds(record)
        Console().print(Text(f"Kept in {loaded.path} and its card."), soft_wrap=True)


def _load(index: str, revision: str | None, token: str | None) -> InfluenceIndex:
    return InfluenceIndex.from_pretrained(index, revision=revision, token=token, streaming=True)


def _print_rows(rows: dict[str, Any]) -> None:
    table = Table("", "", show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(shorten(str(value), 200)))
    Console().print(table)
