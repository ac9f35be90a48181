"""One forward and backward pass: the per-example, projected gradients of every tracked layer.

No weight gradient is computed. All parameters are frozen, the graph starts at the first tracked layer's output, inputs
are projected as they pass and output gradients as they come back.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.devices import all_finite
from ..algebra.matrices import LowRankMatrices, Matrices, Reduction, in_order
from ..algebra.projection import TwoSidedProjection
from ..algebra.statistic import Statistic
from ..errors import NonFiniteGradientError, RecordingError, UnsupportedModuleError
from ..layers import BatchShape
from ..layers.experts import EXPERTS
from ..layers.modules import TrackedModule, base_model
from ..layers.stacks import STACKS
from ..tasks.base import batch_size
from ..tasks.objectives import Objective, Values
from ..tasks.segments import SEGMENTS, Segments, cut, in_place
from .attention import whole_attention
from .experts import recorded_experts
from .following import ParameterFollower
from .following_stacks import StackFollower
from .hooks_restored import hooks_restored
from .layer_hook import InputChangedError, LayerHook
from .model_lock import model_lock
from .stored_weights import execution_device, tied_apart
from .weight_adapters import recorded_weight_adapters


_SMALL_BUFFER = 1 << 22  # numbers; larger ones are tables, in which nothing is counted


@dataclass(frozen=True)
class Recording:
    """What one batch gave.

    Args:
        gradients (`dict[str, Matrices]`): per module float32 (B, d1, d2), G~ = (X P_in)^T (dY P_out), or what the
            module's reduction makes of the tokens instead.
        losses (`Tensor`): float64 (B,), nats, summed over each example's targets.
        targets (`Tensor` or `None`): int64 (B,), targets per example where the task tells.
        weights (`Tensor` or `None`): float32 (B,), what an example counts for where the objective weights them.
    """

    gradients: dict[str, Matrices]
    losses: Tensor
    targets: Tensor | None
    weights: Tensor | None


class GradientRecorder:
    """Context manager that hooks a model; `record(batch)` gives each example's projected gradients.

    On the way out every flag, mode and hook is as it was, also after an error. Only one thread at a time records a
    model; others wait.

    Args:
        model (`nn.Module`): the unwrapped model.
        modules (`Sequence[TrackedModule]`): layers of it.
        projections (`Mapping[str, TwoSidedProjection]`): by module name.
        objective (`Objective`): what is differentiated.
        statistics (`Mapping[str, Statistic]`, *optional*): by module name; every batch is added to them.
        reductions (`Mapping[str, Reduction]`, *optional*): by module name; by default the gradient is formed.
        scales (`Mapping[str, Tensor]`, *optional*): by module name, float32 (I,): what the inputs of a layer are
            multiplied with before they are projected.
        unreached (`Container[str]`, *optional*): modules that may be called without a graph, since no gradient comes
            to them in truth either (what they make is only compared, or cut off).
        alone (`bool`, *optional*, defaults to `False`): whether each batch is a single row, whatever its tensors look
            like: all that passes through a layer belongs to it.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[TrackedModule],
        projections: Mapping[str, TwoSidedProjection],
        objective: Objective,
        statistics: Mapping[str, Statistic] | None = None,
        reductions: Mapping[str, Reduction] | None = None,
        unreached: Container[str] = (),
        alone: bool = False,
        scales: Mapping[str, Tensor] | None = None,
    ):
        self.model = model
        self.modules = modules
        self.objective = objective
        self.alone = alone or objective.task.alone
        self.unreached = unreached
        self.statistics = statistics or {}
        self.reductions = reductions or {}
        self._projections = projections
        scales, wide = scales or {}, {name for name, statistic in self.statistics.items() if statistic.takes_wide}
        self._layers = {
            t.name: LayerHook(t, projections[t.name], self._reduce, scales.get(t.name), t.name in wide)
            for t in modules
        }
        self._gradients: dict[str, Matrices] = {}
        self._counted: set[str] = set()
        self._segments: Segments | None = None  # of the batch, where its examples share sequences
        self._cuts: list[tuple[list[int], Tensor]] = []  # where their tokens are
        self._order = torch.empty(0)  # where they stand among those

    def __enter__(self) -> "GradientRecorder":
        with ExitStack() as held:
            held.enter_context(model_lock(self.model))
            held.callback(self._forget)
            held.enter_context(hooks_restored(self.model))
            for parameter in self.model.parameters():
                held.callback(parameter.requires_grad_, parameter.requires_grad)
            for module in self.model.modules():
                held.callback(setattr, module, "training", module.training)
            for buffer in self.model.buffers():
                if not buffer.is_meta and not buffer.is_inference() and buffer.numel() <= _SMALL_BUFFER:
                    held.callback(_restore, buffer, buffer.clone(), buffer._version)
            self._check_tied()
            config: Any = getattr(base_model(self.model), "config", None)
            self._versions = [(t.name, t.weight, _version(t.weight)) for t in self.modules]
            held.enter_context(whole_attention())
            self.model.eval()
            for module in self.model.modules():
                if type(module).__module__.startswith("bitsandbytes."):
                    module.training = True  # in eval mode on a CPU it packs its weight anew, without a gradient
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            if hasattr(config, "use_cache"):
                held.callback(setattr, config, "use_cache", config.use_cache)
                config.use_cache = False
            called = [layer for layer in self._layers.values() if not layer.tracked.followed]
            held.enter_context(recorded_experts(called, self.model))
            held.enter_context(recorded_weight_adapters(called, self.model))
            for layer in called:
                experts = isinstance(layer.tracked.kind, EXPERTS)
                for module in () if experts else (layer.tracked.module, *layer.tracked.shared):
                    held.callback(module.register_forward_hook(layer, with_kwargs=True).remove)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._held.close()

    def _check_tied(self) -> None:
        apart = tied_apart(self.model)
        for tracked in self.modules:
            if id(tracked.weight) in apart:
                raise UnsupportedModuleError(
                    f"Module '{tracked.name}' shares its weight with '{apart[id(tracked.weight)]}', and the model is "
                    "offloaded or on several devices, where each has a copy of its own: neither sees the gradient of "
                    f"both. Load the model on one device, or leave it out with exclude_modules=['{tracked.name}'].",
                    tracked.name,
                )

    def _forget(self) -> None:
        self._gradients = {}
        for layer in self._layers.values():
            layer.release()

    def record(
        self, batch: Mapping[str, Any], rows: Sequence[int] | None = None, counted: set[str] | None = None
    ) -> Recording:
        """Record one batch.

        Args:
            batch (`Mapping`): tensors with the examples along the first axis, or a single row's where rows go alone;
                moved to the model's device.
            rows (`Sequence[int]`, *optional*): what to call the examples in an error; by default 0, 1, ...
            counted (`set[str]`, *optional*): modules whose statistics have this batch already, from a pass over it
                that ended halfway. Modules are added as they take it in: keep the set to try the batch again.

        Raises:
            [`~lorif_hf.errors.NonFiniteGradientError`]: names the module and the rows.
            [`~lorif_hf.errors.UnsupportedModuleError`]: no tracked layer took part, or one mixes the examples.
            [`~lorif_hf.errors.RecordingError`]: another thread uses or trains the model.
        """
        return self.trial(batch, rows, counted)

    def trial(
        self, batch: Mapping[str, Any], rows: Sequence[int] | None = None, counted: set[str] | None = None
    ) -> Recording:
        """The same for a batch that is only looked at, and no part of a pass."""
        device = execution_device(self.model)
        with torch.inference_mode(False):  # whoever calls from inside of one
            return self._record(_moved(batch, device), rows, counted, device)

    def differentiate(self, batch: Mapping[str, Any], take: Callable[[Tensor], None]) -> Tensor:
        """The losses of a batch, float64 (B,), by a plain forward pass.

        Args:
            batch (`Mapping`): as of [`~GradientRecorder.record`].
            take (`Callable`): gets the sum of the losses, with a graph to what has `requires_grad` by now; not called
                where there is none.
        """
        device = execution_device(self.model)
        with torch.inference_mode(False), torch.enable_grad():
            values = self.objective(self.model, _moved(batch, device))
            if values.losses.requires_grad:
                take(values.losses.sum())
            return values.losses.detach().cpu().double()

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of the outputs of the modules that were called so far."""
        return {name: layer.dtype for name, layer in self._layers.items() if layer.dtype is not None}

    def _record(
        self, moved: dict[str, Any], rows: Sequence[int] | None, counted: set[str] | None, device: torch.device
    ) -> Recording:
        task = self.objective.task
        size = 1 if self.alone else batch_size(moved) // task.sequences
        rows = range(size) if rows is None else rows
        self._segments = None if self.alone else moved.get(SEGMENTS)
        if self._segments is None:
            ids = moved.get("input_ids")
            axes = ids.shape if isinstance(ids, Tensor) else torch.Size()
            choices = axes[1] if len(axes) == 3 else task.sequences
            shape = BatchShape(size, axes[1:].numel() if len(axes) in (2, 3) else None, choices)
        else:
            shape, self._cuts = BatchShape(*self._segments.shape), self._segments.cuts(device)
            self._order = in_place(self._cuts).to(device)
        self._counted = set() if counted is None else counted
        values = self._passed(moved, shape)
        self._check_undisturbed()
        for layer in self._layers.values():  # of layers that were called more often than a gradient came back
            if layer.tokens:
                self._reduce(layer)
        without_graph = [
            name
            for name, layer in self._layers.items()
            if layer.ran_without_graph and name not in self._gradients and name not in self.unreached
        ]
        if without_graph:
            raise self._no_graph(without_graph)
        self._check_finite(values.losses, rows)
        targets = task.targets(moved)
        return Recording(
            {t.name: self._gradient_of(t, size, device) for t in self.modules},
            values.losses.detach().cpu().double(),
            None if targets is None else targets.to("cpu", torch.int64),
            values.weights,
        )

    def _begin(self, shape: BatchShape) -> None:
        self._gradients = {}
        for layer in self._layers.values():
            layer.begin(shape)

    def _passed(self, batch: dict[str, Any], shape: BatchShape) -> Values:
        """The values of a forward and backward pass that brought the gradients."""
        followed = [layer for layer in self._layers.values() if layer.tracked.followed]
        plain = [layer for layer in followed if not isinstance(layer.tracked.kind, STACKS)]
        stacks = [layer for layer in followed if layer not in plain or layer.tracked.weight.dim() == 2]
        while True:
            self._begin(shape)
            with (
                torch.enable_grad(),
                ParameterFollower(plain) if plain else ExitStack(),
                StackFollower(stacks) if stacks else ExitStack(),
            ):
                values = self.objective(self.model, batch)
                if self.alone and not values.losses.requires_grad and not bool(values.losses.any()):
                    return values  # a row without a target
                if not values.losses.requires_grad:
                    raise self._no_graph(list(self._layers))
                try:
                    values.losses.sum().backward()
                    return values
                except InputChangedError:
                    continue  # once more: each time, the inputs of a further layer are copied

    def _reduce(self, layer: LayerHook) -> None:
        """Make a layer's gradients of the tokens of all its calls, and let go of them."""
        name, calls, wide = layer.tracked.name, layer.tokens, layer.wide
        layer.tokens, layer.wide = [], []
        parts = [_joined(calls)] if self._segments is None else self._apart(name, calls, self._segments)
        if name in self.statistics and name not in self._counted:
            for inputs, returned in wide or parts:
                self.statistics[name].add(self.statistics[name].of(inputs, returned))
            self._counted.add(name)
        gradients = [self.reductions.get(name, _formed)(inputs, returned) for inputs, returned in parts]
        # Documents of like length throughout are in order.
        self._gradients[name] = gradients[0] if len(gradients) == 1 else in_order(gradients, self._order)

    def _apart(
        self, name: str, calls: Sequence[tuple[Tensor, Tensor]], segments: Segments
    ) -> list[tuple[Tensor, Tensor]]:
        """The tokens of a layer, example by example, those of like length together.

        Only now: cut as they pass, and padded to the longest, the inputs of all layers would take a multiple.
        """
        size, length = segments.shape
        copies = []
        for inputs, returned in calls:
            times, rest = divmod(inputs.shape[1], length)
            if len(inputs) != size or rest or not times or returned.shape[:2] != inputs.shape[:2]:
                raise UnsupportedModuleError(
                    f"Module '{name}' saw {inputs.shape[0]} x {inputs.shape[1]} tokens of a batch of {size} x "
                    f"{length}, so the documents in it cannot be told apart. Record them one at a time "
                    "(objective='model'), or leave it out with exclude_modules."
                )
            copies.append(times)
        return [
            _joined([(cut(x, index, k), cut(dy, index, k)) for (x, dy), k in zip(calls, copies, strict=True)])
            for _, index in self._cuts
        ]

    def _gradient_of(self, tracked: TrackedModule, size: int, device: torch.device) -> Matrices:
        gradient = self._gradients.get(tracked.name)
        if gradient is not None:
            return gradient
        # Not called, or no token came to it (an expert): zero. An index says which layers have none in every row.
        d1, d2 = self._projections[tracked.name].projected_shape(tracked.matrix_shape)
        nothing = torch.zeros(size, 1, d1, device=device), torch.zeros(size, 1, d2, device=device)
        return self.reductions.get(tracked.name, _formed)(*nothing)

    def _no_graph(self, names: Sequence[str]) -> UnsupportedModuleError:
        shown = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
        return UnsupportedModuleError(
            f"No gradient reaches module(s) {shown}: they were not called, or ran without a graph (torch.no_grad, "
            "activation checkpointing with use_reentrant=True: use False, or switch it off for the recording pass; or "
            "layers with a backward of their own, as Reformer's, which cannot be recorded)."
        )

    def _check_undisturbed(self) -> None:
        elsewhere = [name for name, layer in self._layers.items() if layer.used_elsewhere]
        changed = [name for name, weight, version in self._versions if _version(weight) != version]
        if elsewhere or changed:
            what = "called" if elsewhere else "changed"
            raise RecordingError(
                f"Module '{(elsewhere or changed)[0]}' was {what} by another thread while the model was recorded: it "
                "is being trained or used. Record when that is over, or a copy of the model (copy.deepcopy)."
            )

    def _check_finite(self, losses: Tensor, rows: Sequence[int]) -> None:
        gradients = {t.name: self._gradients[t.name] for t in self.modules if t.name in self._gradients}
        # What is not finite in a token is not finite in the gradient's every product.
        values = {name: g.right if isinstance(g, LowRankMatrices) else g for name, g in gradients.items()}
        if all_finite([losses, *(numbers.sum(dim=(1, 2)) for numbers in values.values())]):
            return
        for name, numbers in values.items():
            finite = torch.isfinite(numbers).flatten(1).all(dim=1)
            bad = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
            if bad:
                raise NonFiniteGradientError(name, bad)
        if not bool(torch.isfinite(losses).all()):
            bad = [row for row, loss in zip(rows, losses.tolist(), strict=True) if not math.isfinite(loss)]
            raise NonFiniteGradientError("(the loss)", bad)


def _restore(buffer: Tensor, value: Tensor, version: int) -> None:
    """Give a buffer its value back, where a forward pass counted in it."""
    if buffer._version != version:
        with torch.no_grad():
            buffer.copy_(value)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; `None` of one that was made in inference mode, which cannot be."""
    return None if tensor.is_inference() else tensor._version


def _joined(calls: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The tokens of all calls of a layer, as those of a single one."""
    if len(calls) == 1:
        return calls[0]
    inputs, returned = (torch.cat(side, dim=1) for side in zip(*calls, strict=True))
    return inputs, returned


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on the model's device, of tensors that autograd takes."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return {k: v.clone() if isinstance(v, Tensor) and v.is_inference() else v for k, v in moved.items()}


def without_gradient(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """A reduction for a pass that adds up moments alone: a number of each example, finite where its tokens are."""
    return (inputs.sum(dim=(1, 2)) * 0 + output_gradients.sum(dim=(1, 2)) * 0).view(-1, 1, 1)


def _formed(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """G~ = X^T dY of each example, whole."""
    return inputs.mT @ output_gradients
