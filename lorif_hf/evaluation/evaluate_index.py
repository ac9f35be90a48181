"""How good an index is: its linear datamodeling score against a bank of retrained models."""

import math
import os
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import EvaluationError
from ..layers.modules import unwrap
from ..querying.loading import load_model
from ..storage.measured_lds import LDSRecord
from ..tasks import Custom, Task, UserObjective, task_of
from .lds import LDSResult, lds
from .retraining.bank import RetrainBank
from .retraining.runs import complete_features, plain_features


if TYPE_CHECKING:
    from ..index import InfluenceIndex


def evaluate_lds(
    index: "InfluenceIndex",
    bank: RetrainBank,
    model: nn.Module | str,
    queries: Any = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    processing_class: Any = None,
    objective: UserObjective | Task | str | None = None,
    batch_size: int = 8,
    strict: bool = True,
) -> LDSResult:
    """Score the bank's queries with an index and compare with the retrained models.

    Args:
        index ([`InfluenceIndex`]): an index of the training set that was retrained on.
        bank ([`~lorif_hf.evaluation.retraining.bank.RetrainBank`]): the ground truth.
        model (`nn.Module` or `str`): the model that was indexed, or a Hub id or folder to load it from.
        queries (*optional*): the bank's queries in the bank's order, to see that they are the ones you mean; by
            default those in the bank.
        confidence, resamples, seed: as in [`~lorif_hf.evaluation.lds.lds`].
        processing_class, objective, batch_size, strict: as in [`InfluenceIndex.scores`].

    Returns:
        [`~lorif_hf.evaluation.lds.LDSResult`]: between -1 and 1; positive: proponents lower the query's loss.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: index, bank and queries do not belong together.
        [`~lorif_hf.errors.ModelMismatchError`], [`~lorif_hf.errors.QueryError`]: as in [`InfluenceIndex.scores`].

    Example:

    ```python
    >>> bank = RetrainBank.from_pretrained("bank")
    >>> evaluate_lds(index, bank, model).mean
    0.45
    ```
    """
    bank.check(index)
    if objective is None and bank.info["objective"].get("name") == Custom.name:
        raise EvaluationError(
            "The bank's losses are those of an objective of your own: pass objective=, the function that retrain() "
            "got."
        )
    if queries is not None:
        if isinstance(model, (str, os.PathLike)):
            model = load_model(
                os.fspath(model), index.manifest.model, index._token, [entry.name for entry in index.manifest.modules]
            )
        base = unwrap(model)
        tokenizer = index._asked_tokenizer if processing_class is None else processing_class
        _check_queries(complete_features(queries, base, task_of(base, objective), tokenizer), bank)
    scores = index.scores(
        model,
        bank.queries,
        processing_class=processing_class,
        objective=objective,
        batch_size=batch_size,
        strict=strict,
    )
    return lds(scores, bank.losses, bank.membership, confidence=confidence, resamples=resamples, seed=seed)


def lds_record(index: "InfluenceIndex", bank: RetrainBank, result: LDSResult) -> LDSRecord:
    """The score as [`InfluenceIndex.save_lds`] keeps it with the index.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: no query had losses to rank.
    """
    if math.isnan(result.mean):
        raise EvaluationError(
            "The losses of every query are the same under all retrained models, so there is no score to keep. See "
            "that make_trainer trains, and that the queries have something to measure."
        )
    names = ("query_low", "query_high", "subset_low", "subset_high")
    bounds = [None if math.isnan(bound) else bound for bound in (*result.query_interval, *result.subset_interval)]
    return LDSRecord(
        mean=result.mean,
        confidence=result.confidence,
        num_queries=len(bank.queries),
        num_subsets=len(bank.membership),
        num_seeds=len(bank.seeds),
        seed_agreement=bank.seed_agreement() if len(bank.seeds) > 1 else None,
        bank=bank.repo_id,
        build=index.manifest.build,
        **dict(zip(names, bounds, strict=True)),
    )


def _check_queries(features: list[Any], bank: RetrainBank) -> None:
    """See that these queries are the bank's, in its order."""
    given, expected = plain_features(features), plain_features(bank.queries)
    if len(given) != len(expected):
        raise EvaluationError(
            f"The bank has losses of {len(expected)} queries, {len(given)} were given: pass the queries that "
            "retrain() got, or none to take them from the bank."
        )
    different = [i for i, query in enumerate(given) if query != expected[i]]
    if not different:
        return
    if sorted(map(str, given)) == sorted(map(str, expected)):
        raise EvaluationError(
            f"The queries are the bank's in another order, first at query {different[0]}: pass them in the order that "
            "retrain() got, or none to take them from the bank."
        )
    raise EvaluationError(
        f"{len(different)} of the {len(given)} queries are not the bank's, first query {different[0]}: pass the "
        "queries that retrain() got (with the same tokenizer), or none to take them from the bank."
    )
