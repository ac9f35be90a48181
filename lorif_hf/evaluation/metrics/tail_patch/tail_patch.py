"""The tail-patch score from measured log-probabilities for `evaluate`; see `lorif_hf.evaluation.tail_patch`."""

from typing import Any

from datasets import Value

from lorif_hf.evaluation import tail_patch_of
from lorif_hf.evaluation.evaluate_metric import AttributionMetric


class TailPatch(AttributionMetric):
    """
    Tail-patch score: by how much does a query's log-probability rise when the model takes one more step on the
    training rows that are held to be behind it? In nats; positive is good.
    """

    CITATION = """
        @misc{chang2024scalable,
          title = {Scalable Influence and Fact Tracing for Large Language Model Pretraining},
          author = {Tyler A. Chang and Dheeraj Rajagopal and Tolga Bolukbasi and Lucas Dixon and Ian Tenney},
          year = {2024},
          eprint = {2410.17413},
          archivePrefix = {arXiv},
        }
    """
    INPUTS = """
        Args:
            predictions: one log-probability per query after the step, nats.
            references: one log-probability per query before the step, nats.
            confidence: of the bootstrap interval, 0.95 by default. This and the next two to `compute` or to
                `evaluate.load`.
            resamples: of the bootstrap, 1000 by default.
            seed: of the bootstrap, 0 by default.

        Returns:
            tail_patch (mean change over queries), per_query, interval.
    """
    ARXIV = "2410.17413"
    FEATURES = {"predictions": Value("float64"), "references": Value("float64")}
    OPTIONS = {"confidence": 0.95, "resamples": 1000, "seed": 0}

    def _score(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        result = tail_patch_of(references, predictions, **options)
        return {"tail_patch": result.mean, "per_query": result.per_query.tolist(), "interval": list(result.interval)}
