"""Detection of mislabelled rows by self-influence for `evaluate`; see `lorif_hf.evaluation.mislabel_detection`."""

from typing import Any

import numpy as np
from datasets import Value

from lorif_hf.evaluation import mislabel_detection
from lorif_hf.evaluation.evaluate_metric import AttributionMetric


class MislabelDetection(AttributionMetric):
    """
    Mislabel detection: does high self-influence tell the mislabelled training rows from the others? Area under the ROC
    curve (0.5 is chance, 1 is perfect), and the recall of mislabelled rows when the top p of all rows are checked.
    """

    CITATION = """
        @misc{koh2017understanding,
          title = {Understanding Black-box Predictions via Influence Functions},
          author = {Pang Wei Koh and Percy Liang},
          year = {2017},
          eprint = {1703.04730},
          archivePrefix = {arXiv},
        }
    """
    INPUTS = """
        Args:
            predictions: one self-influence per training row, any unit.
            references: one boolean per training row: whether it is mislabelled.
            fractions: parts of the rows to check, [0.05, 0.1, 0.2, 0.3] by default. To `compute`, or to
                `evaluate.load`.

        Returns:
            auroc, and recall@p for each fraction p.
    """
    ARXIV = "1703.04730"
    FEATURES = {"predictions": Value("float64"), "references": Value("bool")}
    OPTIONS = {"fractions": (0.05, 0.1, 0.2, 0.3)}

    def _score(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        result = mislabel_detection(predictions, np.asarray(references, dtype=bool), **options)
        return {"auroc": result.auroc, **{f"recall@{p:g}": value for p, value in result.recall.items()}}
