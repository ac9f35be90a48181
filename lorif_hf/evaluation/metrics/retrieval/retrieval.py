"""Recall and mean reciprocal rank of known sources for `evaluate`; see `lorif_hf.evaluation.retrieval`."""

from typing import Any

import datasets
import evaluate

from lorif_hf.evaluation import retrieval, retrieval_of_rankings


_DESCRIPTION = """\
Retrieval of known sources: recall at k and mean reciprocal rank of the training rows that are known to be behind a
query, ranked by attribution scores. Between 0 and 1; higher is better.
"""
_INPUTS = """
Args:
    predictions: one row per query: its N scores, one per training row, positive is a proponent; with `ranked=True`
        row numbers, best first.
    references: one row per query: the numbers of its source rows, one or more.
    ks: where to cut for the recall, [1, 10] by default. To `compute`, or to `evaluate.load`.
    ranked: whether predictions are row numbers, False by default. To `compute`, or to `evaluate.load`.

Returns:
    mrr, and recall@k for each k.
"""


class Retrieval(evaluate.Metric):
    def __init__(self, ks: Any = (1, 10), ranked: Any = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ks = ks
        self.ranked = ranked

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, ks: Any = None, ranked: Any = None) -> dict[str, Any]:
        ks = self.ks if ks is None else ks
        if self.ranked if ranked is None else ranked:
            rows = [[int(row) for row in of_query] for of_query in predictions]
            result = retrieval_of_rankings(rows, references, ks=ks)
        else:
            result = retrieval(predictions, references, ks=ks)
        return {"mrr": result.mrr, **{f"recall@{k}": value for k, value in result.recall.items()}}
