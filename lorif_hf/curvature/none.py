"""No curvature: the plain inner product of gradients."""

from ..config import InfluenceConfig
from ..errors import ConfigError
from .base import FixedCurvature


class NoCurvature(FixedCurvature):
    """H is the identity: TracIn at the last checkpoint."""

    name = "none"
    first_pass = None

    @classmethod
    def from_config(cls, config: InfluenceConfig) -> "NoCurvature":
        if config.whitening != "none":
            raise ConfigError("curvature='none' is the product of gradients as they are: set whitening='none'.")
        return cls()
