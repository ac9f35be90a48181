"""How queries are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..checks import one_of, whole_number
from ..errors import QueryError
from ..tasks import Task, UserObjective
from ..tasks.measures import Measure
from .device_scan import usable_device


Reduce = Literal["mean"]
"""What `reduce=` takes."""


@dataclass(frozen=True)
class QueryOptions:
    """How queries are measured.

    Args:
        modules (`str` or `Sequence[str]`, *optional*): score only the layers whose names match.
        processing_class (*optional*): tokenizer, image processor, feature extractor or processor for queries.
        objective (*optional*): what is measured; by default that of the index.
        batch_size (`int`): queries per forward pass.
        strict (`bool`): refuse a model with other weights; `False` warns.
        measure (`str`, *optional*): what of a query is measured: one of [`~lorif_hf.tasks.measures.Measure`].
        token (`int`, *optional*): measure this one of the answer's tokens alone; negative ones count from the end.
        reduce (`str`, *optional*): "mean": all queries are one, the mean of theirs.
        per_token (`bool`): score each token of the answer by itself.
        device (`str` or `torch.device`, *optional*): where queries are scored; by default the CPU.

    Raises:
        [`~lorif_hf.errors.QueryError`]: one of them cannot be, or not beside another.
    """

    modules: str | Sequence[str] | None = None
    processing_class: Any = None
    objective: UserObjective | Task | str | None = None
    batch_size: int = 8
    strict: bool = True
    measure: Measure | None = None
    token: int | None = None
    reduce: Reduce | None = None
    per_token: bool = False
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        usable_device(self.device)
        whole_number(self.batch_size, "batch_size", 1, QueryError)
        if self.measure is not None:
            one_of(self.measure, "measure", Measure, QueryError)
        if self.token is not None and (isinstance(self.token, bool) or not isinstance(self.token, int)):
            raise QueryError(f"token must be an integer, the place of a token in the answer, got {self.token!r}.")
        if self.reduce is not None:
            one_of(self.reduce, "reduce", Reduce, QueryError)
        if not isinstance(self.per_token, bool):
            raise QueryError(f"per_token must be True or False, got {self.per_token!r}.")
        if self.per_token and (self.token is not None or self.reduce is not None):
            beside = "token" if self.token is not None else "reduce"
            raise QueryError(f"per_token=True scores each token of each query: leave out {beside}=.")
        if (self.per_token or self.token is not None) and self.measure in ("difference", "reward"):
            raise QueryError(
                f"measure='{self.measure}' is of whole completions: leave out per_token= and token=, or ask about one "
                "completion, {'prompt': ..., 'completion': ...}."
            )
