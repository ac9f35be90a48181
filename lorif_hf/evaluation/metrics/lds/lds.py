"""The linear datamodeling score for `evaluate`; the mathematics is in `lorif_hf.evaluation.lds`."""

import os
from typing import Any

import datasets
import evaluate
import numpy as np

from lorif_hf.evaluation import lds, lds_of_predictions
from lorif_hf.evaluation.arrays import as_array


_DESCRIPTION = """\
Linear datamodeling score (LDS): do attribution scores predict how models retrained on subsets of the data behave?
Spearman correlation, over subsets, between the summed scores of a subset's members and minus the measured loss; mean
over queries. Positive is good.
"""
_CITATION = """\
@misc{park2023trak,
  title = {TRAK: Attributing Model Behavior at Scale},
  author = {Sung Min Park and Kristian Georgiev and Andrew Ilyas and Guillaume Leclerc and Aleksander Madry},
  year = {2023},
  eprint = {2303.14186},
  archivePrefix = {arXiv},
}
"""
_INPUTS = """
Args:
    predictions: one row per query. With `membership`: its N scores, one per training row; positive is a proponent.
        Without: its M predictions, one per subset; higher is better.
    references: one row per query: its M losses, one per retrained model; lower is better.
    membership: (M, N) booleans, or the path of a .npy file of them: whether training row n is in subset m. Pass it
        to `compute`, or to `evaluate.load`, as `evaluate.combine` needs.
    confidence: of the bootstrap intervals, 0.95 by default.
    resamples: of the bootstrap, 1000 by default.
    seed: of the bootstrap, 0 by default.

Returns:
    lds, per_query, query_interval, subset_interval, num_constant (queries of constant loss, left out of the mean).
"""


class Lds(evaluate.Metric):
    def __init__(
        self, membership: Any = None, confidence: Any = 0.95, resamples: Any = 1000, seed: Any = 0, **kwargs: Any
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        self.membership = membership
        self.confidence = confidence
        self.resamples = resamples

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": row, "references": row}),
            reference_urls=["https://arxiv.org/abs/2303.14186"],
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        membership: Any = None,
        confidence: Any = None,
        resamples: Any = None,
        seed: Any = None,
    ) -> dict[str, Any]:
        membership = self.membership if membership is None else membership
        options = {
            "confidence": self.confidence if confidence is None else confidence,
            "resamples": self.resamples if resamples is None else resamples,
            "seed": self.seed if seed is None else seed,
        }
        losses = as_array(references, "references").T
        if membership is None:
            result = lds_of_predictions(predictions, losses, **options)
        else:
            if isinstance(membership, (str, os.PathLike)):
                membership = np.load(membership, allow_pickle=False)
            result = lds(predictions, losses, membership, **options)
        return {
            "lds": result.mean,
            "per_query": result.per_query.tolist(),
            "query_interval": list(result.query_interval),
            "subset_interval": list(result.subset_interval),
            "num_constant": result.num_constant,
        }
