"""How good is an attribution? Plain functions over arrays, the same as metrics of `evaluate`, and their Spaces."""

from .evaluate_index import evaluate_lds
from .lds import LDSResult, lds, lds_of_predictions
from .mislabel_detection import MislabelDetectionResult, mislabel_detection
from .publishing import metric, metric_names, push_metric_to_hub
from .retraining.bank import RetrainBank
from .retraining.retrain import retrain
from .retrieval import RetrievalResult, retrieval, retrieval_of_rankings
from .tail_patch import TailPatchResult, proponent_batches, tail_patch, tail_patch_of


__all__ = [
    "LDSResult",
    "MislabelDetectionResult",
    "RetrainBank",
    "RetrievalResult",
    "TailPatchResult",
    "evaluate_lds",
    "lds",
    "lds_of_predictions",
    "metric",
    "metric_names",
    "mislabel_detection",
    "proponent_batches",
    "push_metric_to_hub",
    "retrain",
    "retrieval",
    "retrieval_of_rankings",
    "tail_patch",
    "tail_patch_of",
]
