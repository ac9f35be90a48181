"""The tail-patch score from measured log-probabilities for `evaluate`; see `lorif_hf.evaluation.tail_patch`."""

from typing import Any

import datasets
import evaluate

from lorif_hf.evaluation import tail_patch_of


_DESCRIPTION = """\
Tail-patch score: by how much does a query's log-probability rise when the model takes one more step on the training
rows that are held to be behind it? In nats; positive is good.
"""
_CITATION = """\
@misc{chang2024scalable,
  title = {Scalable Influence and Fact Tracing for Large Language Model Pretraining},
  author = {Tyler A. Chang and Dheeraj Rajagopal and Tolga Bolukbasi and Lucas Dixon and Ian Tenney},
  year = {2024},
  eprint = {2410.17413},
  archivePrefix = {arXiv},
}
"""
_INPUTS = """
Args:
    predictions: one log-probability per query after the step, nats.
    references: one log-probability per query before the step, nats.
    confidence: of the bootstrap interval, 0.95 by default. This and the next two to `compute` or to `evaluate.load`.
    resamples: of the bootstrap, 1000 by default.
    seed: of the bootstrap, 0 by default.

Returns:
    tail_patch (mean change over queries), per_query, interval.
"""


class TailPatch(evaluate.Metric):
    def __init__(self, confidence: Any = 0.95, resamples: Any = 1000, seed: Any = 0, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.confidence = confidence
        self.resamples = resamples

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://arxiv.org/abs/2410.17413"],
        )

    def _compute(
        self, predictions: Any, references: Any, confidence: Any = None, resamples: Any = None, seed: Any = None
    ) -> dict[str, Any]:
        result = tail_patch_of(
            references,
            predictions,
            confidence=self.confidence if confidence is None else confidence,
            resamples=self.resamples if resamples is None else resamples,
            seed=self.seed if seed is None else seed,
        )
        return {
            "tail_patch": result.mean,
            "per_query": result.per_query.tolist(),
            "interval": list(result.interval),
        }
