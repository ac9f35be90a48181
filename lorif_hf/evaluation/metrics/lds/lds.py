"""The linear datamodeling score for `evaluate`; the mathematics is in `lorif_hf.evaluation.lds`."""

import os
from typing import Any

import numpy as np
from datasets import Sequence, Value

from lorif_hf.evaluation import lds, lds_of_predictions
from lorif_hf.evaluation.arrays import as_array
from lorif_hf.evaluation.evaluate_metric import AttributionMetric


class Lds(AttributionMetric):
    """
    Linear datamodeling score (LDS): do attribution scores predict how models retrained on subsets of the data behave?
    Spearman correlation, over subsets, between the summed scores of a subset's members and minus the measured loss;
    mean over queries. Positive is good.
    """

    CITATION = """
        @misc{park2023trak,
          title = {TRAK: Attributing Model Behavior at Scale},
          author = {Sung Min Park and Kristian Georgiev and Andrew Ilyas and Guillaume Leclerc and Aleksander Madry},
          year = {2023},
          eprint = {2303.14186},
          archivePrefix = {arXiv},
        }
    """
    INPUTS = """
        Args:
            predictions: one row per query. With `membership`: its N scores, one per training row; positive is a
                proponent. Without: its M predictions, one per subset; higher is better.
            references: one row per query: its M losses, one per retrained model; lower is better.
            membership: (M, N) booleans, or the path of a .npy file of them: whether training row n is in subset m.
                Pass it to `compute`, or to `evaluate.load`, as `evaluate.combine` needs.
            confidence: of the bootstrap intervals, 0.95 by default.
            resamples: of the bootstrap, 1000 by default.
            seed: of the bootstrap, 0 by default.

        Returns:
            lds, per_query, query_interval, subset_interval, num_constant (queries of constant loss, left out of the
            mean).
    """
    ARXIV = "2303.14186"
    FEATURES = {"predictions": Sequence(Value("float64")), "references": Sequence(Value("float64"))}
    OPTIONS = {"membership": None, "confidence": 0.95, "resamples": 1000, "seed": 0}

    def _score(self, predictions: Any, references: Any, membership: Any = None, **options: Any) -> dict[str, Any]:
        losses = as_array(references, "references").T
        if isinstance(membership, (str, os.PathLike)):
            membership = np.load(membership, allow_pickle=False)
        if membership is None:
            result = lds_of_predictions(predictions, losses, **options)
        else:
            result = lds(predictions, losses, membership, **options)
        return {
            "lds": result.mean,
            "per_query": result.per_query.tolist(),
            "query_interval": list(result.query_interval),
            "subset_interval": list(result.subset_interval),
            "num_constant": result.num_constant,
        }
