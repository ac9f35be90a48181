"""`lorif-hf evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DEVICE, INDEX, JSON, MODEL, REVISION, TOKEN, loaded_index
from .printing import print_json, print_line, print_values


evaluate = typer.Typer(help="Measure how good an index is.", no_args_is_help=True)


@evaluate.callback()
def _group() -> None:
    """Metrics are commands of their own."""


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
    device: DEVICE = None,
    revision: REVISION = None,
    token: TOKEN = None,
    as_json: JSON = False,
) -> None:
    """Linear datamodeling score: do the scores foretell retraining? It is kept in an index that is a folder."""
    from ..evaluation import RetrainBank, evaluate_lds
    from ..evaluation.evaluate_index import lds_record
    from .models import queried_model
    from .query_files import read_query_file

    asked = None if queries is None else read_query_file(queries)
    loaded = loaded_index(index, revision, token)
    truth = RetrainBank.from_pretrained(bank, token=token)
    truth.check(loaded)  # before a model is loaded
    result = evaluate_lds(loaded, truth, queried_model(model, loaded, token, device), asked, confidence=confidence)
    record = lds_record(loaded, truth, result)
    kept = loaded.repo_id is None
    if as_json:
        print_json(
            {
                "lds": result.mean,
                "confidence": confidence,
                "query_interval": list(result.query_interval),
                "subset_interval": list(result.subset_interval),
                "seed_agreement": record.seed_agreement,
                "num_queries": record.num_queries,
                "num_constant": result.num_constant,
                "num_subsets": record.num_subsets,
                "num_seeds": record.num_seeds,
                "kept_in": str(loaded.path) if kept else None,
            }
        )
    else:
        span = f"{100 * confidence:g}% interval over"
        agreement = "one seed" if record.seed_agreement is None else f"{record.seed_agreement:.4f}"
        print_values(
            {
                "LDS": f"{result.mean:.4f}",
                f"{span} queries": "{:.4f} to {:.4f}".format(*result.query_interval),
                f"{span} subsets": "{:.4f} to {:.4f}".format(*result.subset_interval),
                "two seeds of the ground truth": agreement,
                "queries": f"{record.num_queries} ({result.num_constant} of constant loss, left out)",
                "subsets": f"{record.num_subsets} x {record.num_seeds} seed(s)",
            }
        )
    if kept:
        loaded.save_lds(record)
        if not as_json:
            print_line(f"Kept in {loaded.path} and its card.")
