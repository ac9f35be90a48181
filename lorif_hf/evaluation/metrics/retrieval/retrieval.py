"""Recall and mean reciprocal rank of known sources for `evaluate`; see `lorif_hf.evaluation.retrieval`."""

from typing import Any

from datasets import Sequence, Value

from lorif_hf.evaluation import retrieval, retrieval_of_rankings
from lorif_hf.evaluation.evaluate_metric import AttributionMetric


class Retrieval(AttributionMetric):
    """
    Retrieval of known sources: recall at k and mean reciprocal rank of the training rows that are known to be behind a
    query, ranked by attribution scores. Between 0 and 1; higher is better.
    """

    INPUTS = """
        Args:
            predictions: one row per query: its N scores, one per training row, positive is a proponent; with
                `ranked=True` row numbers, best first.
            references: one row per query: the numbers of its source rows, one or more.
            ks: where to cut for the recall, [1, 10] by default. To `compute`, or to `evaluate.load`.
            ranked: whether predictions are row numbers, False by default. To `compute`, or to `evaluate.load`.

        Returns:
            mrr, and recall@k for each k.
    """
    FEATURES = {"predictions": Sequence(Value("float64")), "references": Sequence(Value("int64"))}
    OPTIONS = {"ks": (1, 10), "ranked": False}

    def _score(self, predictions: Any, references: Any, ranked: Any = False, **options: Any) -> dict[str, Any]:
        if ranked:
            rows = [[int(row) for row in of_query] for of_query in predictions]
            result = retrieval_of_rankings(rows, references, **options)
        else:
            result = retrieval(predictions, references, **options)
        return {"mrr": result.mrr, **{f"recall@{k}": value for k, value in result.recall.items()}}
