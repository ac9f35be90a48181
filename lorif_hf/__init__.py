"""Which training examples made my model say this? Low-rank influence functions for Hugging Face models."""

from importlib.metadata import version

from .config import InfluenceConfig
from .ensemble import ensemble_scores
from .evaluation import metric
from .index import InfluenceIndex
from .reports.attribution import Attribution


__version__ = version("lorif-hf")
__all__ = ["Attribution", "InfluenceConfig", "InfluenceIndex", "__version__", "ensemble_scores", "metric"]
