"""A build that is ready to run."""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from ..config import InfluenceConfig
from ..layers.modules import unwrap
from ..recording.document_search import packing_of
from ..recording.rows import TrainingRows
from ..recording.streamed_rows import StreamedRows, numbered
from ..storage.claim import INDEX_FOLDER
from ..tasks import Task, UserObjective
from .builder import IndexBuilder
from .options import BuildOptions
from .replacing import folder_to_build
from .way import choice_of


def plan_build(
    model: Any,
    dataset: Any,
    folder: Path,
    config: InfluenceConfig | None,
    options: BuildOptions,
    *,
    objective: UserObjective | Task | str | None = None,
    processing_class: Any = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    examples: Any = None,
    store_text: bool | int = True,
    trainer: Any = None,
    trained: Container[str] = (),
    examples_seen: int | None = None,
    settle: bool = False,
) -> IndexBuilder:
    """A build that is ready to run: everything that can be checked without a forward pass is.

    The arguments are those of `InfluenceIndex.build`, and `trainer`: the Trainer whose loss was trained, `trained`:
    the parameters that were, whatever `requires_grad` says by now, and `settle`: read a stream that may end earlier
    than was thought to see how many rows it has.
    """
    INDEX_FOLDER.check(folder)
    target = folder_to_build(folder, options.overwrite)
    model, config = unwrap(model), config or InfluenceConfig()
    choice = choice_of(model, objective, trainer)
    kind, packing, dataset = choice.tasks[0], packing_of(trainer), numbered(dataset, examples_seen)
    how = model, kind, processing_class, data_collator, examples, store_text, packing
    rows = TrainingRows(dataset, *how)
    if settle and isinstance(dataset, StreamedRows) and dataset.at_most:
        if rows.documents is None:
            rows.settle()
        else:
            dataset.settle()
            rows = TrainingRows(dataset, *how)
    builder = IndexBuilder(model, rows, target, config, processing_class, options, choice, trained)
    builder.place = folder
    return builder
