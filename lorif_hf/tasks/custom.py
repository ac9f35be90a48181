"""An objective of the user's own, given as a function."""

from typing import Any

from torch import Tensor, nn

from ..errors import QueryError
from .base import Feature, Task, UserObjective, no_margin
from .text import TextReader


class Custom(Task):
    """A function `(model, batch) -> (B,)` as a task. It is not registered: an index only knows that there was one.

    Args:
        function (`UserObjective`): takes the model and a batch of tensors, gives a (B,) tensor with a graph.
    """

    name = "custom"
    auto_class = None
    needs_labels = False
    makes_labels = False
    labelled_queries = False
    query_example = "batch"

    def __init__(self, function: UserObjective):
        self.__wrapped__ = function  # Python's name for what stands behind something else

    def accepts(self, model: nn.Module) -> bool:
        return False

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return self.__wrapped__(model, batch)

    def targets(self, batch: dict[str, Any]) -> None:
        return None

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        """A prompt and its completion, as of a causal language model."""
        if not isinstance(target, str):
            raise QueryError(f"Query {number} pairs a text with {target!r}: expected a (prompt, completion) pair.")
        return reader.completion(text, target, number)

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # only the function knows what it measures
