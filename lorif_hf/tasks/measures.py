"""What is measured of a query: its loss, a log-probability, a margin, a reward, or the difference of two completions.

Each is minimised, as a loss is: a row that lowers it is a proponent.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from ..errors import QueryError
from ..layers.modules import base_model
from .base import Task, known_task
from .collation import LABELS
from .custom import Custom
from .objectives import LikelihoodObjective, LossObjective, MarginObjective, Objective, RewardObjective
from .own_loss import RowLoss, TrainerLoss, has_users_loss
from .query_forms import Query


Measure = Literal["loss", "log_prob", "margin", "difference", "reward"]
"""What `measure=` takes."""

MEASURES: tuple[str, ...] = get_args(Measure)


def usual_measure(queries: Sequence[Query], model: nn.Module, task: Task, objective: str, output: str) -> str:
    """What is measured where nobody says.

    Of two completions their difference; of one that stands alone in an index of a Trainer's own loss, a reward model's
    reward; else what the index records.

    Args:
        queries (`Sequence[Query]`): what is asked.
        model (`nn.Module`): the unwrapped model.
        task (`Task`): what its queries are measured with.
        objective (`str`): the name of what the index was built with.
        output (`str`): "loss" or "margin", as `InfluenceConfig.output`.
    """
    if any(query.is_pair for query in queries):
        return "difference"
    labelled = any(name in query.features[0] for query in queries for name in LABELS)
    if (objective == TrainerLoss.name or task.sides) and _is_reward_model(model) and not labelled:
        return "reward"
    if any(query.sign != 1 for query in queries):
        return "log_prob"
    return output


def check_measure(queries: Sequence[Query], measure: str) -> None:
    """Raises [`~lorif_hf.errors.QueryError`] where a query is none of which this can be measured."""
    for number, query in enumerate(queries):
        if query.is_pair and measure != "difference":
            raise QueryError(
                f"Query {number} has two completions, of which measure='{measure}' is not known: ask measure="
                "'difference', or one completion alone, {'prompt': ..., 'completion': ...}."
            )
        if not query.is_pair and measure == "difference":
            raise QueryError(
                f"Query {number} is no pair of completions, which measure='difference' is of: pass {{'prompt': ..., "
                "'chosen': ..., 'rejected': ...}, and queries of one completion in a call of their own."
            )


def objective_of(measure: str, task: Task, model: nn.Module) -> Objective:
    """What is differentiated of each feature of the queries.

    Args:
        measure (`str`): one of [`MEASURES`].
        task (`Task`): of the index, or the user's own.
        model (`nn.Module`): the unwrapped model.

    Raises:
        [`~lorif_hf.errors.QueryError`]: nothing of the kind is known of the task.
    """
    if measure == "loss":
        return LossObjective(task)
    if measure in ("reward", "difference") and _is_reward_model(model):
        return RewardObjective(task)
    if measure == "reward":
        raise QueryError(
            f"measure='reward' is what a model of a single output gives, and a {type(base_model(model)).__name__} is "
            "none: ask measure='log_prob'."
        )
    known = task.inner if isinstance(task, RowLoss) else known_task(model) if task.sides else task
    if known is None or isinstance(known, Custom):
        raise QueryError(
            f"measure='{measure}' needs the classes that the model tells apart, and objective '{task.name}' does not "
            "know them: ask measure='loss', or pass objective=, a registered task."
        )
    if measure == "margin":
        return MarginObjective(known)
    if isinstance(task, RowLoss) and known.makes_labels and not has_users_loss(model):
        return LossObjective(task)  # the model's own, which knows whether its labels are shifted
    return LikelihoodObjective(known)


def _is_reward_model(model: nn.Module) -> bool:
    base = base_model(model)
    single = getattr(getattr(base, "config", None), "num_labels", 0) == 1
    return single and type(base).__name__.endswith("ForSequenceClassification")
