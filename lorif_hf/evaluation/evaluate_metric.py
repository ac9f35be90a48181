"""What our metrics share as `evaluate` opens them. Only their scripts import this: `evaluate` is optional."""

from abc import ABC, abstractmethod
from inspect import cleandoc
from typing import Any, ClassVar

import datasets
import evaluate


class AttributionMetric(evaluate.Metric, ABC):
    """A metric whose options go to `compute`, or to `evaluate.load`, as `evaluate.combine` needs.

    A metric's own docstring is its description.

    Attributes:
        INPUTS (`str`): its arguments and results, for people.
        FEATURES (`dict`): what a prediction and a reference are.
        OPTIONS (`dict`): their defaults.
        CITATION (`str`): BibTeX.
        ARXIV (`str` or `None`): number of the paper.
    """

    INPUTS: ClassVar[str]
    FEATURES: ClassVar[dict[str, Any]]
    OPTIONS: ClassVar[dict[str, Any]]
    CITATION: ClassVar[str] = ""
    ARXIV: ClassVar[str | None] = None

    def __init__(self, **kwargs: Any) -> None:
        self._given = {name: kwargs.pop(name, default) for name, default in self.OPTIONS.items()}
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=cleandoc(self.__doc__ or "") + "\n",
            citation=cleandoc(self.CITATION),
            inputs_description=f"\n{cleandoc(self.INPUTS)}\n",
            features=datasets.Features(self.FEATURES),
            reference_urls=[f"https://arxiv.org/abs/{self.ARXIV}"] if self.ARXIV else [],
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if value is not None}
        return self._score(predictions, references, **(self._given | given))

    @abstractmethod
    def _score(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        """What `compute` returns, given every option."""
