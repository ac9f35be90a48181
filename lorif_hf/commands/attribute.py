"""`lorif-hf attribute`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEVICE, INDEX, JSON, MODEL, REVISION, TOKEN, loaded_index
from .outputs import check_outputs, write_output
from .printing import print_json, print_table


if TYPE_CHECKING:
    from ..reports.attribution import Attribution

STANDARD_INPUT = "-"


def attribute(
    index: INDEX,
    model: MODEL,
    query: Annotated[
        str | None, typer.Argument(help='The text to attribute; "-" reads texts from the standard input, one a line.')
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="File of queries: .txt (one a line), or .jsonl with query, or prompt and completion."),
    ] = None,
    completion: Annotated[str | None, typer.Option(help="Measure this completion; the query is its prompt.")] = None,
    top_k: Annotated[int, typer.Option(help="How many proponents of each query.", min=1)] = 10,
    opponents: Annotated[int, typer.Option(help="How many opponents, the lowest scores.", min=0)] = 0,
    fold_duplicates: Annotated[
        bool, typer.Option("--fold-duplicates", help="Show of texts that say nearly the same the best alone.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(help="Score these layers alone: how their names end, or a regular expression; may be repeated."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Refuse a model with other weights; --no-strict warns.")] = True,
    batch_size: Annotated[int, typer.Option(help="Queries that go through the model at once.", min=1)] = 8,
    csv: Annotated[Path | None, typer.Option(help="Write the ranked rows to this table.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the result to this page.")] = None,
    device: DEVICE = None,
    revision: REVISION = None,
    token: TOKEN = None,
    as_json: JSON = False,
) -> None:
    """Rank the training examples behind a text, or behind each of many."""
    if (query is None) == (queries is None):
        raise typer.BadParameter("pass a QUERY (or - for the standard input), or a file with --queries: one of them.")
    if completion is not None and (query is None or query == STANDARD_INPUT):
        raise typer.BadParameter("--completion goes with a QUERY, its prompt; in a file each has its own.")
    check_outputs({"--csv": csv, "--html": html})
    asked = _asked(query, queries, completion)

    from .models import queried_model

    loaded = loaded_index(index, revision, token)
    result = loaded.attribute(
        queried_model(model, loaded, token, device),
        asked,
        top_k=top_k,
        opponents=opponents,
        fold_duplicates=fold_duplicates,
        by_layer=html is not None,
        modules=_layers(modules),
        batch_size=batch_size,
        strict=strict,
        device=device,
    )
    if csv is not None:
        write_output(csv, result.to_csv)
    if html is not None:
        write_output(html, result.save_html)
    print_answer(result, as_json)


def print_answer(result: "Attribution", as_json: bool) -> None:
    """A result on the terminal: a table for each query, or the JSON that [`~lorif_hf.Attribution.to_json`] writes."""
    if as_json:
        from ..reports.tables import as_json as whole

        print_json(whole(result))
        return
    for number in range(len(result)):
        print_table(_table(result, number))


def _table(result: "Attribution", number: int) -> Any:
    """The rows of a query: proponents and, below a line, opponents."""
    from rich.table import Table
    from rich.text import Text

    from ..reports.attribution import shorten
    from ..reports.rankings import rankings

    table = Table("score", "row", "id", "training example", title=Text(shorten(result.queries[number], 200)))
    for ranking in rankings(result, number):
        best = len(ranking.rows) - ranking.opponents
        for place, (row, score) in enumerate(zip(ranking.rows, ranking.scores, strict=True)):
            if place == best:
                table.add_section()
            example, copies = result.examples[row], len(result.copies.get(row, ()))
            text = shorten(example["text"], 300) + (f" (and {copies} like it)" if copies else "")
            table.add_row(f"{score:+.4g}", str(row), Text(shorten(example["example_id"], 300)), Text(text))
    return table


def _layers(names: list[str] | None) -> str | list[str] | None:
    """Names or their ends as a list; or one regular expression that whole names must match."""
    expressions = [name for name in names or () if re.search(r"[*+?^$|()\[\]{}\\]", name)]
    if expressions and names is not None:
        return "|".join(f"(?:{name})" if name in expressions else rf"(?:.*\.)?{re.escape(name)}" for name in names)
    return names or None


def _asked(query: str | None, queries: Path | None, completion: str | None) -> Any:
    """What is asked, as `InfluenceIndex.attribute` takes it."""
    from .query_files import read_query_file, read_standard_input

    if queries is not None:
        return read_query_file(queries)
    if query == STANDARD_INPUT:
        return read_standard_input()
    return query if completion is None else (query, completion)
