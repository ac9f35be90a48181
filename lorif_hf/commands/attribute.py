"""`lorif-hf attribute`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEVICE, INDEX, JSON, MODEL, REVISION, TOKEN, loaded_index
from .outputs import check_outputs, write_output
from .printing import print_json, print_table


if TYPE_CHECKING:
    from torch import Tensor

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
        typer.Option(help="Score these layers alone: a regular expression, or the option repeated with names."),
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
    chosen = modules[0] if modules and len(modules) == 1 else modules or None
    # What is not asked for is not passed.
    shown: dict[str, Any] = {"opponents": opponents, "fold_duplicates": fold_duplicates, "by_layer": html is not None}
    shown = {name: value for name, value in shown.items() if value}
    result = loaded.attribute(
        queried_model(model, loaded, token, device),
        asked,
        top_k=top_k,
        modules=chosen,
        batch_size=batch_size,
        strict=strict,
        device=device,
        **shown,
    )
    if csv is not None:
        write_output(csv, result.to_csv)  # type: ignore[attr-defined]
    if html is not None:
        write_output(html, result.save_html)
    print_answer(index, result, as_json)


def print_answer(index: str, result: "Attribution", as_json: bool) -> None:
    """A result on the terminal: a table for each query, or JSON."""
    if as_json:
        print_json(answer(index, result))
        return
    for number in range(len(result)):
        print_table(_table(result, number))


def answer(index: str, result: "Attribution") -> dict[str, Any]:
    """What `attribute --json` prints."""
    queries = []
    for number, text in enumerate(result.queries):
        opponents: list[dict[str, Any]] = []
        if result.opponent_scores is not None and result.opponent_indices is not None:
            opponents = _ranked(result, result.opponent_scores[number], result.opponent_indices[number])
        proponents = _ranked(result, result.scores[number], result.indices[number])
        loss = result.losses[number]
        queries.append({"query": text, "loss": loss, "proponents": proponents, "opponents": opponents})
    return {
        "index": index,
        "commit": result.commit,
        "measure": result.measure,
        "queries": queries,
    }


def _ranked(result: "Attribution", scores: "Tensor", rows: "Tensor") -> list[dict[str, Any]]:
    return [
        {"rank": rank, "score": score, **result.examples[row], "copies": list(result.copies.get(row, ()))}
        for rank, (score, row) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True), 1)
        if row >= 0  # a query may have fewer distinct rows than others
    ]


def _table(result: "Attribution", number: int) -> Any:
    """The rows of a query: proponents and, below a line, opponents."""
    from rich.table import Table
    from rich.text import Text

    from ..reports.attribution import shorten

    table = Table("score", "row", "id", "training example", title=Text(shorten(result.queries[number], 200)))
    sides = [(result.scores[number], result.indices[number])]
    if result.opponent_scores is not None and result.opponent_indices is not None:
        sides.append((result.opponent_scores[number], result.opponent_indices[number]))
    for scores, rows in sides:
        for ranked in _ranked(result, scores, rows):
            identity, text = shorten(ranked["example_id"], 300), shorten(ranked["text"], 300)
            if ranked["copies"]:
                text += f" (and {len(ranked['copies'])} like it)"
            table.add_row(f"{ranked['score']:+.4g}", str(ranked["row"]), Text(identity), Text(text))
        table.add_section()
    return table


def _asked(query: str | None, queries: Path | None, completion: str | None) -> Any:
    """What is asked, as `InfluenceIndex.attribute` takes it."""
    from .query_files import read_query_file, read_standard_input

    if queries is not None:
        return read_query_file(queries)
    if query == STANDARD_INPUT:
        return read_standard_input()
    return query if completion is None else (query, completion)
