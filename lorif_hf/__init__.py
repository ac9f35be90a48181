"""Which training examples made my model say this? Low-rank influence functions for Hugging Face models.

`lorif_hf.callbacks` (the Trainer's side) and `lorif_hf.model_cards` (the templates of the cards) lie beside this
folder in the repository, in `callbacks/` and `model_cards/`, and are installed under these names. Kinds of your own
are registered with `lorif_hf.layers`, `lorif_hf.tasks`, `lorif_hf.curvature` and `lorif_hf.codecs`.

What is named here is imported when it is first asked for: `import lorif_hf` itself loads no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from . import codecs, curvature, errors, evaluation, layers, tasks
    from .config import InfluenceConfig
    from .ensemble import InfluenceEnsemble, ensemble_scores
    from .evaluation import metric
    from .index import InfluenceIndex
    from .reports.attribution import Attribution

__version__ = version("lorif-hf")
__all__ = ["Attribution", "InfluenceConfig", "InfluenceEnsemble", "InfluenceIndex", "__version__"]
__all__ += ["codecs", "curvature", "ensemble_scores", "errors", "evaluation", "layers", "metric", "tasks"]

_HOMES = {
    "Attribution": "reports.attribution",
    "InfluenceConfig": "config",
    "InfluenceEnsemble": "ensemble",
    "InfluenceIndex": "index",
    "ensemble_scores": "ensemble",
    "metric": "evaluation",
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from its own module."""
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in __all__:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
