"""How the rows are recorded: as fast as possible, where the check of the first batch shows that it is right."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..algebra.projection import TwoSidedProjection
from ..config import InfluenceConfig
from ..errors import (
    LorifError,
    RecordingCheckError,
    RecordingError,
    UnsupportedModuleError,
    out_of_memory,
)
from ..layers.adapters import lora_layers
from ..layers.modules import TrackedModule
from ..recording.check import Comparison, Probe, RecordingCheck
from ..recording.random_state import random_state_kept
from ..recording.rows import TrainingRows
from ..recording.shared_inputs import shared_inputs
from ..registry import outside_module
from ..tasks import CausalLM, Task, UserObjective, task_of
from ..tasks.base import batch_size, known_task
from ..tasks.contrastive import check_is_of_rows
from ..tasks.objectives import OUTPUTS, LossObjective, Objective
from ..tasks.own_loss import RowLoss, TrainerLoss, has_users_loss, model_loss, trainer_loss
from ..tasks.preferences import preference_task
from ..tasks.segments import SEGMENTS, without_segments
from .recording_pass import packed, typed_error
from .telling_rows import among_others, rows_of_each_label, telling_rows


logger = logging.getLogger(__name__)

_ROWS = 3  # that are compared
_APART = 1e-3  # of a row's loss in 16 bits, that its neighbours' tokens may change by the order of sums

_OWN = (
    "The Trainer's loss is your own: recording objective='trainer', one row at a time. If it is the model's loss, "
    "pass objective='%s', which goes in batches."
)

_INSTEAD = "Objective '%s' is not what %s: %s. Recording %s, one row at a time (%s)."
_NO_SUM = (
    "The loss of rows %s together is %.6g, and neither the sum nor the mean of their own (%s): it depends "
    "on the batch (class weights in a mean, padding), and a row alone has lost that. If it matters, pass objective=, "
    "a function (model, batch) -> (B,) of what each row adds to the loss."
)


@dataclass(frozen=True)
class Way:
    """A way to record rows.

    Args:
        task (`Task`): whose losses are differentiated.
        followed (`frozenset[str]`): modules whose weights are followed through functions, beside those that must be.
        unreached (`frozenset[str]`): modules to which no gradient came in truth.
        dropped (`Mapping[str, str]`): modules that are not recorded, since it would be wrong, and why.
        single (`bool`): whether rows go one at a time though the task could take several: it was only seen to be right
            for one.
        shared (`Mapping[str, str]`): modules that have the same inputs as others, and the first of those.

    Attributes:
        alone (`bool`): whether rows, and queries later, go through the model one at a time.
    """

    task: Task
    followed: frozenset[str] = frozenset()
    unreached: frozenset[str] = frozenset()
    single: bool = False
    dropped: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        return self.task.alone or self.single

    def of(self, modules: Sequence[TrackedModule]) -> list[TrackedModule]:
        """The modules as this way sees them."""
        kept = [tracked for tracked in modules if tracked.name not in self.dropped]
        return [replace(t, followed=t.followed or t.name in self.followed) for t in kept]


@dataclass(frozen=True)
class Choice:
    """What may be recorded, the fastest first, and what it is compared with.

    Args:
        tasks (`Sequence[Task]`): the tasks to try: each with rows together, or one at a time where it comes again.
        truth (`Task`): what was trained.
    """

    tasks: Sequence[Task]
    truth: Task


def choice_of(model: nn.Module, objective: UserObjective | Task | str | None, trainer: Any = None) -> Choice:
    """The tasks that fit a model.

    Args:
        model (`nn.Module`): the unwrapped model.
        objective (*optional*): the user's word: it is what was trained. `"model"` and `"trainer"` are the own losses.
        trainer (*optional*): the Trainer, whose `compute_loss` is the truth; else that is the model's own loss.

    Raises:
        [`~lorif_hf.errors.ObjectiveError`]: the objective is none, or its loss is of whole batches.
    """
    if objective is not None:
        task = task_of(model, objective, trainer)
        if isinstance(task, RowLoss):
            check_is_of_rows(model, task)
        return Choice([task] if task.alone else [task, task], task)
    fast = known_task(model)
    truth: RowLoss = model_loss(model) if trainer is None else trainer_loss(trainer, model)
    check_is_of_rows(model, truth)
    preferred = preference_task(trainer)
    if preferred is not None:
        return Choice([preferred, preferred, truth], truth)
    own = isinstance(truth, TrainerLoss) and (truth.is_users_own() or truth.smooths())
    if fast is not None and (own or (outside_module(fast) is None and has_users_loss(model))):
        fast = None  # a few rows prove nothing of a loss that may weigh others otherwise
    return Choice([truth] if fast is None else [fast, truth], truth)


def unchecked_way(choice: Choice, rows: TrainingRows) -> Way:
    """The way where nothing is compared: of packed rows together only the documents that the model is told of."""
    documents, task = rows.documents, choice.tasks[0]
    return Way(task, single=documents is not None and not (documents.told and task.name == CausalLM.name))


class WayFinder:
    """Finds the fastest way that records what was trained.

    Args:
        model (`nn.Module`): the unwrapped model.
        rows (`TrainingRows`): the training set.
        modules (`Sequence[TrackedModule]`): what is tracked.
        projections (`Mapping[str, TwoSidedProjection]`): by module name.
        config (`InfluenceConfig`): what is differentiated.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: TrainingRows,
        modules: Sequence[TrackedModule],
        projections: Mapping[str, TwoSidedProjection],
        config: InfluenceConfig,
    ):
        self.rows, self.modules = rows, modules
        self._every = config.target_modules == "all"
        self._left_out: dict[str, str] = {}
        self.output = OUTPUTS[config.output]
        self.model, self.projections = model, projections
        self._compare(telling_rows(rows, _ROWS))

    def find(self, choice: Choice, before: Way | None = None) -> Way:
        """The way.

        Args:
            choice (`Choice`): what may be recorded.
            before (`Way`, *optional*): what an earlier check found: the same is not told again.

        Raises:
            [`~lorif_hf.errors.RecordingCheckError`]: no way records what was trained; says what to pass.
            [`~lorif_hf.errors.LorifError`]: the rows cannot be recorded at all.
        """
        self.told = None if before is None else before.task.name
        with random_state_kept(self.rows.collator, self.rows.dataset):
            while True:
                try:
                    way = self._find(choice)
                    return replace(way, shared=self._shared(way) if before is None else before.shared)
                except UnsupportedModuleError as error:
                    if not (self._may_leave_out and error.module and len(self.modules) > 1):
                        raise
                    self._leave_out(error.module, str(error))
                except RecordingError as error:
                    if len(self.row_ids) == 1 or not out_of_memory(error.__cause__):
                        raise
                    self._compare(self.row_ids[:-1])

    def _shared(self, way: Way) -> dict[str, str]:
        """Which modules have the same inputs."""
        row, objective = self.rows.single(self.row_ids[0]), LossObjective(way.task)
        adapted = lora_layers(self.model)
        return shared_inputs(way.of(self.modules), lambda: self.check.losses(objective, row), adapted)

    @property
    def _may_leave_out(self) -> bool:
        """Whether what cannot be recorded rightly is left out: of everything, whatever can be is meant; and after a
        training, the index is not lost for some layers."""
        return self._every or self.told is not None

    def _leave_out(self, module: str, why: str) -> None:
        logger.warning("%s It is left out of the index.", why)
        self._left_out[module] = f"it cannot be recorded: {why.partition('. ')[0]}"
        self.modules = [tracked for tracked in self.modules if tracked.name != module]
        self._compare(self.row_ids)

    def _compare(self, row_ids: list[int]) -> None:
        """Compare these rows from now on."""
        self.row_ids = row_ids
        self.check = RecordingCheck(self.model, self.modules, self.projections, row_ids)

    def _find(self, choice: Choice) -> Way:
        failures: list[tuple[Task, Exception | Comparison]] = []
        seconds, nearest = 0.0, None
        for number, task in enumerate(choice.tasks):
            try:
                tried, comparison, took = self._try(task, choice.truth, task in choice.tasks[:number])
            except Exception as error:  # whatever a model, a collator or a Trainer of the user's raises
                if out_of_memory(error):
                    raise typed_error(error, self.row_ids) or error from error
                failures.append((task, error))
                continue
            if comparison.equal:
                if task.name == self.told:
                    return tried
                if task.caveat is not None:
                    logger.warning(task.caveat)
                if failures:
                    self._tell(failures[0], task, took / seconds if seconds else None)
                elif isinstance(task, TrainerLoss) and task.is_users_own() and task.inner is not None:
                    logger.warning(_OWN, task.inner.name)
                return tried
            failures.append((task, comparison))
            seconds = took
            if self._may_leave_out and comparison.modules and not comparison.wrong_loss:
                if nearest is None or len(comparison.modules) < len(nearest[1].modules):
                    nearest = tried, comparison
        if nearest is not None:
            return self._without(*nearest)
        raise self._refusal(failures)

    def _without(self, way: Way, problem: Comparison) -> Way:
        """The way without the modules whose gradients differ."""
        if len(problem.modules) == len(self.modules):
            raise self._refusal([(way.task, problem)])
        logger.warning("%s: they are left out of the index.", str(problem).capitalize())
        reason = "what would be recorded of it differs from autograd's gradient"
        return replace(way, dropped={**way.dropped, **dict.fromkeys(problem.modules, reason)})

    def _try(self, task: Task, truth: Task, single: bool) -> tuple[Way, Comparison, float]:
        """The best way to record a task, how far it is from the truth, and how long it took."""
        self.rows.task = task
        batches, singles = self._batches(task.alone or single)
        objective = self.output(task)
        recorded = self.check.recorded(objective, batches)
        if recorded.coarse and SEGMENTS in batches[0]:
            self._check_apart(LossObjective(task), batches[0])
        margin = not isinstance(objective, LossObjective)  # is no loss: its gradients are compared with its own
        true = self._truth(objective, task if margin else truth, singles)
        unreached = frozenset(name for name, rows in true.gradients.items() if not bool(rows.any()))
        if len(unreached) == len(self.modules):
            self._refuse_unreached(task, batches, true)
        if isinstance(task, RowLoss) and task.name != self.told:
            self._tell_of_batches(task, 2e-2 if recorded.coarse else 2e-3)
        single = single or len(self.row_ids) == 1
        way = Way(task, unreached=unreached, single=single, dropped=dict(self._left_out))
        comparison = self.check.compare(recorded, true, with_loss=not margin)
        if comparison.modules and not comparison.wrong_loss:
            following = replace(way, followed=frozenset(comparison.modules))
            again = self.check.recorded(objective, batches, following.of(self.modules))
            better = self.check.compare(again, true, with_loss=not margin)
            if len(better.modules) < len(comparison.modules):
                way = replace(way, followed=frozenset(comparison.modules) - better.modules.keys())
                comparison, recorded = better, again
        if comparison.equal and not margin and task is not truth and recorded.coarse:
            # Between batches and rows much is rounding; between two losses of the same rows hardly anything is.
            comparison = self.check.compare(self.check.truth(objective, singles), true, same_rows=True)
        if comparison.equal and margin:
            losses = LossObjective(task)
            comparison = self.check.compare(self.check.recorded(losses, batches), self._truth(losses, truth, singles))
        return way, comparison, recorded.seconds

    def _check_apart(self, objective: Objective, batch: Mapping[str, Any]) -> None:
        """See that rows that share a sequence do not see each other. In 16 bits that may be less than rounding; but of
        the same tokens in the same places, hardly anything is."""
        losses = self.check.losses(objective, batch)
        for place, row in enumerate(self.row_ids):
            loss, other = float(losses[place]), float(self.check.losses(objective, among_others(batch, place))[place])
            if not math.isclose(loss, other, rel_tol=_APART, abs_tol=1e-6):
                raise RecordingCheckError(
                    f"the loss of row {row} is {loss:.6g}, and {other:.6g} among other documents of its sequence: "
                    "they see each other"
                )

    def _refuse_unreached(self, task: Task, batches: Sequence[Mapping[str, Any]], true: Probe) -> None:
        """Nothing that is tracked has a gradient. Where that is for want of targets, later rows may have some; where
        there is a loss all the same, later weights may (a head of zeros)."""
        targets = [task.targets(dict(batch)) for batch in batches]
        if all(count is not None and not bool(count.any()) for count in targets):
            return
        rows = f"rows {', '.join(map(str, self.row_ids))}"
        if not isinstance(task, RowLoss) or bool((true.losses.abs() > 1e-6).all()):
            logger.warning(
                "The gradients of all %d tracked layers are zero in %s at these weights: there is nothing to compare.",
                len(self.modules),
                rows,
            )
            return
        raise RecordingCheckError(
            f"The loss and the gradients of all {len(self.modules)} tracked layers are zero in {rows}, each alone: "
            "nothing could be attributed. A loss that compares the rows of a batch with each other (contrastive "
            "learning) is no sum over rows, and is not supported; else check what is tracked (target_modules)."
        )

    def _tell_of_batches(self, task: RowLoss, tolerance: float) -> None:
        """Warn where the loss of several rows is not made of those of each, as their sum or their mean."""
        rows, objective = rows_of_each_label(self.rows) or self.row_ids, LossObjective(task)
        singles = [self.rows.single(row) for row in rows]
        losses = torch.cat([self.check.losses(objective, single) for single in singles])
        counts = [task.targets(single) for single in singles]
        sizes = torch.tensor([1.0 if count is None else float(count.sum()) for count in counts], dtype=torch.float64)
        # Over rows, over their tokens, and over their tokens but the first.
        means = [(losses * weights).sum() / weights.sum() for weights in (torch.ones_like(sizes), sizes, sizes - 1)]
        try:
            together = float(self.check.losses(objective, without_segments(self.rows.batch(rows))))
        except Exception as error:  # rows that do not go together have no loss together
            logger.debug("The loss of rows %s together cannot be had: %s", rows, error)
            return
        known = [float(value) for value in (losses.sum(), *means)]
        if not any(math.isclose(together, value, rel_tol=tolerance, abs_tol=1e-6) for value in known):
            shown = ", ".join(f"{float(loss):.6g}" for loss in losses)
            logger.warning(_NO_SUM, ", ".join(map(str, rows)), together, shown)

    def _truth(self, objective: Objective, truth: Task, singles: Sequence[Mapping[str, Any]]) -> Probe:
        """What autograd says of each row alone, of the loss that was trained."""
        try:
            return self.check.truth(objective if objective.task is truth else LossObjective(truth), singles)
        except Exception as error:
            if objective.task is truth or isinstance(truth, TrainerLoss) or out_of_memory(error):
                raise
            # A model without a loss of its own: then the task is all that is known of what was trained.
            logger.debug("The model has no loss of its own to compare with: %s", error)
            return self.check.truth(objective, singles)

    def _batches(self, alone: bool) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
        """The rows as they are recorded, and each alone."""
        if alone:
            singles = [self.rows.single(row) for row in self.row_ids]
            return singles, singles
        together = self.rows.batch(self.row_ids)
        size = batch_size(together) // self.rows.task.sequences
        if size != len(self.row_ids):
            raise packed(size, f"{len(self.row_ids)} rows")
        return [together], [self.rows.single(row) for row in self.row_ids]

    def _tell(self, failure: tuple[Task, Exception | Comparison], chosen: Task, slower: float | None) -> None:
        task, problem = failure
        what = problem if isinstance(problem, Comparison) else f"{type(problem).__name__}: {problem}".rstrip(".")
        cost = f"about {slower:.1f} times as slow as together" if slower and slower > 1 else "slower than together"
        instead = "it" if task is chosen else f"objective='{chosen.name}' instead"
        where = "it is of each row, several rows at once" if task is chosen else "was trained"
        logger.warning(_INSTEAD, task.name, where, what, instead, cost)

    def _refusal(self, failures: Sequence[tuple[Task, Exception | Comparison]]) -> Exception:
        task, problem = failures[-1]
        first = failures[0][1]
        if isinstance(first, LorifError) and not isinstance(problem, Comparison):
            return first
        for _, error in failures:
            known = typed_error(error, self.row_ids) if isinstance(error, Exception) else None
            if known is not None:
                return known
        if isinstance(problem, Comparison):
            return RecordingCheckError(
                f"What would be recorded is not what was trained: {problem}. {_advice(problem)}"
            )
        raised = RecordingCheckError(
            f"Objective '{task.name}' fails at the first rows ({type(problem).__name__}: {problem}). Mend that, or "
            "pass objective=, a function (model, batch) -> (B,) of per-example losses. (A loss that needs more than "
            "the row, a generation or a queue, cannot be recorded.)"
        )
        raised.__cause__ = problem
        return raised


def _advice(problem: Comparison) -> str:
    if problem.wrong_loss:
        return (
            "Pass the Trainer (InfluenceCallback(path, trainer=trainer)), objective='model' for the model's own loss, "
            "or objective=, a function (model, batch) -> (B,) of per-example losses."
        )
    names = list(problem.modules)
    shown = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    return f"Leave them out with exclude_modules=[{shown}]; check=False records them all the same."
