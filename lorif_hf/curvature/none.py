"""No curvature: the plain inner product of gradients."""

from torch import Tensor

from ..algebra.gradients import StoredGradients
from ..config import InfluenceConfig
from ..errors import ConfigError
from ..storage.layout import ModuleEntry
from ..storage.shards import ModuleTensors
from .base import Cost, Curvature, Tensors


class NoCurvature(Curvature):
    """H is the identity: TracIn at the last checkpoint."""

    name = "none"
    first_pass = None
    keeps_rank = True

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "NoCurvature":
        if config.whitening != "none":
            raise ConfigError("curvature='none' is the product of gradients as they are: set whitening='none'.")
        return cls()

    def cost(self, gradients: StoredGradients, max_memory: int | None) -> Cost:
        return Cost()

    def fit(self, gradients: StoredGradients, max_memory: int | None) -> None:
        return None

    def load(self, stored: ModuleTensors, entry: ModuleEntry) -> Tensors:
        return {}

    def precondition(self, gradients: Tensor, tensors: Tensors) -> Tensor:
        return gradients
