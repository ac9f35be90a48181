"""Which training examples made my model say this? Low-rank influence functions for Hugging Face models.

`lorif_hf.callbacks` (the Trainer's side) and `lorif_hf.model_cards` (the templates of the cards) lie beside this
folder in the repository, in `callbacks/` and `model_cards/`, and are installed under these names. Kinds of your own
are registered with `lorif_hf.layers`, `lorif_hf.tasks`, `lorif_hf.curvature` and `lorif_hf.codecs`.
"""

from importlib.metadata import version

from .config import InfluenceConfig
from .ensemble import InfluenceEnsemble, ensemble_scores
from .evaluation import metric
from .index import InfluenceIndex
from .reports.attribution import Attribution


__version__ = version("lorif-hf")
__all__ = ["Attribution", "InfluenceConfig", "InfluenceEnsemble", "InfluenceIndex", "__version__"]
__all__ += ["ensemble_scores", "metric"]
