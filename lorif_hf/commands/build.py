"""`lorif-hf build`."""

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BuildFolderError
from .options import DEVICE, JSON, TOKEN
from .printing import print_json, print_line, print_values


if TYPE_CHECKING:
    from ..config import InfluenceConfig

_PRESETS = ("default", "smallest", "best", "paper", "logra", "trak", "grad_dot", "grad_cos")
_Text = str | None


def build(
    model: Annotated[str, typer.Argument(help="The trained model or adapter: a folder or its Hub id.")],
    data: Annotated[
        str, typer.Argument(help="What it was trained on: a .txt, .jsonl, .csv or .parquet file, or a Hub id.")
    ],
    path: Annotated[Path, typer.Argument(help="Folder of the index.")],
    subset: Annotated[_Text, typer.Option(help="Of a dataset on the Hub that has several.")] = None,
    split: Annotated[_Text, typer.Option(help='Like "train" (by default) or "train[:1000]".')] = None,
    text_column: Annotated[_Text, typer.Option(help="Column of the text.")] = None,
    prompt_column: Annotated[_Text, typer.Option(help="Column of the prompt, which was not trained on.")] = None,
    completion_column: Annotated[_Text, typer.Option(help="Column of the completion.")] = None,
    messages_column: Annotated[_Text, typer.Option(help="Column of chat messages.")] = None,
    label_column: Annotated[_Text, typer.Option(help="Column of a classifier's labels.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a row at most, as in the training.", min=2)] = None,
    tokenizer: Annotated[_Text, typer.Option(help="Folder or Hub id; by default the model's own.")] = None,
    config: Annotated[str, typer.Option(help=f"Preset: {', '.join(_PRESETS)}.")] = "default",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the config, like factor_rank=8; may be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows that go through the model at once.", min=1)] = 8,
    max_memory: Annotated[_Text, typer.Option(help='Of the curvature while it is fitted, like "4GB".')] = None,
    store_text: Annotated[bool, typer.Option(help="Keep the texts in the index.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    device: DEVICE = None,
    token: TOKEN = None,
    as_json: JSON = False,
) -> None:
    """Index a training set: what each of its rows did to the model. Called again, it goes on where it stopped."""
    chosen = _config(config, override or [])
    _check_folder(path, overwrite)

    from ..index import InfluenceIndex
    from ..layers.modules import unwrap
    from ..tasks import task_of
    from .info import description
    from .models import tokenizer_of, trained_model
    from .row_columns import Columns, TokenizedRows, chosen_columns, shown_rows
    from .row_files import training_rows

    asked = Columns(text_column, prompt_column, completion_column, messages_column, label_column)
    rows = training_rows(data, subset, split, token)
    loaded, names = trained_model(model, token, device)
    base = unwrap(loaded)
    task = task_of(base)
    columns = chosen_columns(rows, asked, task.labelled_queries)
    dataset: Any = rows
    processing_class = None  # what is tokenized already needs none, but for queries that are texts
    if columns is not None or tokenizer is not None:
        processing_class = tokenizer_of(names if tokenizer is None else [tokenizer], token)
    if columns is not None:
        dataset = TokenizedRows(rows, columns, base, task, processing_class, max_length)
    index = InfluenceIndex.build(
        loaded,
        dataset,
        path,
        config=chosen,
        processing_class=processing_class,
        batch_size=batch_size,
        max_memory=max_memory,
        examples=None if columns is None else shown_rows(rows, columns),
        store_text=store_text,
        overwrite=overwrite,
    )
    if as_json:
        print_json(description(index))
        return
    print_values(
        {
            "index": str(path),
            "model": model,
            "examples": f"{len(index):,}",
            "layers": f"{len(index.manifest.modules)}",
            "coverage": str(index.coverage),
            "bytes per example": f"{index.bytes_per_example:,.0f}",
            "bytes in all": f"{sum(entry.bytes for entry in index.manifest.files):,}",
        }
    )
    print_line(f'Ask it: lorif-hf attribute {quote(str(path))} {quote(model)} "..."')


def _config(preset: str, overrides: list[str]) -> "InfluenceConfig":
    """A preset with fields set otherwise.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: a field that there is not, or a value that it cannot have.
    """
    if preset not in _PRESETS:
        raise typer.BadParameter(f"--config must be one of {', '.join(_PRESETS)}, got '{preset}'.")
    changes: dict[str, Any] = {}
    for change in overrides:
        name, equals, value = change.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"--set takes a field and its value, like factor_rank=8, got '{change}'.")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value  # a text, like target_modules=.*mlp.*

    from ..config import InfluenceConfig

    whole = InfluenceConfig() if preset == "default" else getattr(InfluenceConfig, preset)()
    return InfluenceConfig.from_dict({**whole.to_dict(), **changes})


def _check_folder(path: Path, overwrite: bool) -> None:
    """See that an index can be written there, before a model is loaded for it.

    Raises:
        [`~lorif_hf.errors.BuildFolderError`]: it holds something else, or a finished index.
        [`~lorif_hf.errors.StorageError`]: nothing can be written there.
    """
    from ..storage.claim import INDEX_FOLDER
    from ..storage.layout import MANIFEST

    INDEX_FOLDER.check(path)
    if (path / MANIFEST).exists() and not overwrite:
        raise BuildFolderError(
            f"{path} already holds an index: pass --overwrite to replace it, or choose another folder."
        )
