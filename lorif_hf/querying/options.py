"""How queries are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import whole_number
from ..errors import QueryError
from ..tasks import Task, UserObjective


@dataclass(frozen=True)
class QueryOptions:
    """How queries are measured.

    Args:
        modules (`str` or `Sequence[str]`, *optional*): score only the layers whose names match.
        processing_class (*optional*): tokenizer for text queries.
        objective (*optional*): what is measured; by default that of the index.
        batch_size (`int`): queries per forward pass.
        strict (`bool`): refuse a model with other weights; `False` warns.

    Raises:
        [`~lorif_hf.errors.QueryError`]: the batch size is none.
    """

    modules: str | Sequence[str] | None = None
    processing_class: Any = None
    objective: UserObjective | Task | str | None = None
    batch_size: int = 8
    strict: bool = True

    def __post_init__(self) -> None:
        whole_number(self.batch_size, "batch_size", 1, QueryError)
