"""What every kind of curvature does, and how they are registered.

A curvature is the matrix H in the score <H^-1 G~_q, G~_i>. It lives in three moments: a first pass over a sample of
rows may gather what must be known before anything is stored; a fit may follow on the stored gradients; and a query is
preconditioned by it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..algebra.gradients import StoredGradients
from ..algebra.matrices import Reduction
from ..algebra.statistic import Statistic
from ..config import InfluenceConfig
from ..registry import CURVATURES
from ..storage.layout import ModuleEntry
from ..storage.shards import ModuleTensors


Tensors = dict[str, Tensor]
"""What is kept of one layer, by name; in the index's curvature file as "<module>.<name>"."""


@dataclass(frozen=True)
class Cost:
    """What something takes for one layer.

    Args:
        stored (`int`): bytes in the curvature file.
        memory (`int`): bytes at the peak.
        flops (`float`): operations of matrix products in float32: of a first pass for each example that is whitened,
            of a fit in all.
        token_flops (`float`): of a first pass, for each token of its sample.
        once_flops (`float`): of a first pass, once its sample is through.
        moment_memory (`int`): bytes of a first pass beside `memory`, when its sample is through: of one layer after
            the other.
    """

    stored: int = 0
    memory: int = 0
    flops: float = 0.0
    token_flops: float = 0.0
    once_flops: float = 0.0
    moment_memory: int = 0


@dataclass(frozen=True)
class Fitted:
    """A curvature fitted to what was stored of one layer.

    Args:
        tensors (`Tensors`): what a query needs of it.
        self_influence (`Tensor`): (N,), vec(G~_i)^T H^-1 vec(G~_i) of each stored gradient.
    """

    tensors: Tensors
    self_influence: Tensor


class FirstPass(ABC):
    """What a curvature must know before anything is stored: gathered from a sample of rows.

    Attributes:
        samples (`int`): rows of the sample, evenly spaced, at most.
    """

    samples: int

    @abstractmethod
    def statistic(self, entry: ModuleEntry) -> Statistic:
        """What is added up of a layer's tokens, at zero."""

    @abstractmethod
    def tensors(self, entry: ModuleEntry, statistic: Statistic, scale: float) -> Tensors:
        """What is kept of a layer. `scale`: all rows over those of the sample.

        Raises:
            [`~lorif_hf.errors.RecordingError`]: names the layer.
        """

    @abstractmethod
    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        """The same, read from an index that may come from anybody: every tensor's shape is checked by `stored`."""

    @abstractmethod
    def whiten(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        """What is done to a layer's projected gradients (n, d1, d2), float32, of both sides alike, before the training
        side is cut and stored."""

    @abstractmethod
    def in_scale(self, tensors: Tensors) -> Tensor | None:
        """What a layer's inputs (B, T, I) are multiplied with before they are projected, in recording and in queries
        alike: float32 (I,). `None`: nothing."""

    @abstractmethod
    def reduction(self, tensors: Tensors, width: int | None) -> Reduction | None:
        """What finds the `width` strongest directions of whitened gradients from their tokens, without forming them;
        without a `width`, of queries, what makes whole whitened gradients, formed or not. `None`: they are formed,
        and whitened then."""

    @abstractmethod
    def cost(self, entry: ModuleEntry) -> Cost:
        """What it takes for one layer; all layers are gathered at once."""


class Curvature(ABC):
    """A kind of curvature. A kind implements every abstract method and overrides no other.

    Attributes:
        name (`str`): what `InfluenceConfig.curvature` calls it.
        first_pass (`FirstPass` or `None`): what must be known before anything is stored; `None`: nothing.
        keeps_rank (`bool`): whether preconditioning leaves a query's gradient at the rank that it has.

    Example: (`docs/extending.md` writes all of one)

    ```python
    >>> @lorif_hf.curvature.register
    ... class Mine(Curvature):
    ...     name = "diagonal-fisher"
    ```
    """

    name: ClassVar[str]
    first_pass: FirstPass | None
    keeps_rank: bool

    @classmethod
    @abstractmethod
    def from_config(cls, config: InfluenceConfig) -> "Curvature":
        """The curvature as a config sets it.

        Raises:
            [`~lorif_hf.errors.ConfigError`]: the config holds values that do not go with this curvature.
        """

    @abstractmethod
    def cost(self, gradients: StoredGradients, max_memory: int | None) -> Cost:
        """What fitting it to a layer's gradients takes; what is stored is not read.

        Args:
            gradients (`StoredGradients`): the shape of what will be stored.
            max_memory (`int` or `None`): bytes that the fit may take; where no way is that small, `Cost.memory` is
                that of the smallest.
        """

    @abstractmethod
    def fit(self, gradients: StoredGradients, first: Tensors, max_memory: int | None) -> Fitted | None:
        """Fit it to what was stored of a layer; `None`, of every layer, where nothing is left to be fitted: H is the
        identity on what is stored, and self-influence is that of the gradients before they were cut. `first` is what
        the first pass kept of the layer.

        Raises:
            `ValueError`: the gradients are too large for float32.
        """

    @abstractmethod
    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        """What [`~Curvature.precondition`] needs, read from an index that may come from anybody: every tensor's shape
        is checked by `stored`."""

    @abstractmethod
    def precondition(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        """Q~ = H^-1 G~_q of queries' (whitened) gradients, float32 (Q, d1, d2)."""


class FixedCurvature(Curvature):
    """A curvature of which nothing is fitted: H is the identity on what is stored, whitened or not. Kinds say which
    configs they go with."""

    keeps_rank = True

    def cost(self, gradients: StoredGradients, max_memory: int | None) -> Cost:
        return Cost()

    def fit(self, gradients: StoredGradients, first: Tensors, max_memory: int | None) -> None:
        return None

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        return {}

    def precondition(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        return gradients


def curvature_of(config: InfluenceConfig) -> Curvature:
    """How an index of this config preconditions a query."""
    curvature: Curvature = CURVATURES.get(config.curvature).from_config(config)
    return curvature
