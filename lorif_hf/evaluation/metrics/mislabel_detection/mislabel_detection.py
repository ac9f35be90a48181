"""Detection of mislabelled rows by self-influence for `evaluate`; see `lorif_hf.evaluation.mislabel_detection`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from lorif_hf.evaluation import mislabel_detection


_DESCRIPTION = """\
Mislabel detection: does high self-influence tell the mislabelled training rows from the others? Area under the ROC
curve (0.5 is chance, 1 is perfect), and the recall of mislabelled rows when the top p of all rows are checked.
"""
_CITATION = """\
@misc{koh2017understanding,
  title = {Understanding Black-box Predictions via Influence Functions},
  author = {Pang Wei Koh and Percy Liang},
  year = {2017},
  eprint = {1703.04730},
  archivePrefix = {arXiv},
}
"""
_INPUTS = """
Args:
    predictions: one self-influence per training row, any unit.
    references: one boolean per training row: whether it is mislabelled.
    fractions: parts of the rows to check, [0.05, 0.1, 0.2, 0.3] by default. To `compute`, or to `evaluate.load`.

Returns:
    auroc, and recall@p for each fraction p.
"""


class MislabelDetection(evaluate.Metric):
    def __init__(self, fractions: Any = (0.05, 0.1, 0.2, 0.3), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fractions = fractions

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("bool")}
            ),
            reference_urls=["https://arxiv.org/abs/1703.04730"],
        )

    def _compute(self, predictions: Any, references: Any, fractions: Any = None) -> dict[str, Any]:
        fractions = self.fractions if fractions is None else fractions
        result = mislabel_detection(predictions, np.asarray(references, dtype=bool), fractions=fractions)
        return {"auroc": result.auroc, **{f"recall@{p:g}": value for p, value in result.recall.items()}}
