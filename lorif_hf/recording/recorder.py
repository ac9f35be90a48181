"""One forward and backward pass: the per-example, projected gradients of every tracked layer.

No weight gradient is computed. All parameters are frozen, the graph starts at the first tracked layer's output, inputs
are projected as they pass and output gradients as they come back.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.matrices import LowRankMatrices, Matrices
from ..algebra.projection import TwoSidedProjection, project
from ..algebra.whitening import SecondMoments
from ..errors import NonFiniteGradientError, UnsupportedModuleError
from ..layers.modules import TrackedModule, base_model
from ..tasks.objectives import Objective, batch_size


logger = logging.getLogger(__name__)

Reduction = Callable[[Tensor, Tensor], Matrices]
"""Makes a layer's gradients of its tokens: float32 (B, T, d1) and (B, T, d2), projected, to B matrices d1 x d2."""


@dataclass(frozen=True)
class Recording:
    """What one batch gave.

    Args:
        gradients (`dict[str, Matrices]`): per module float32 (B, d1, d2), G~ = (X P_in)^T (dY P_out), or what the
            module's reduction makes of the tokens instead.
        losses (`Tensor`): float64 (B,), nats, summed over each example's targets.
        targets (`Tensor` or `None`): int64 (B,), targets per example where the objective tells.
        weights (`Tensor` or `None`): float32 (B,), what an example counts for where the objective weights them.
    """

    gradients: dict[str, Matrices]
    losses: Tensor
    targets: Tensor | None
    weights: Tensor | None


class _InputChangedError(Exception):
    """An input that was held instead of copied was changed in place after its layer had seen it."""


class GradientRecorder:
    """Context manager that hooks a model; `record(batch)` gives each example's projected gradients.

    On the way out every flag, mode and hook is as it was, also after an error.

    Args:
        model (`nn.Module`): the unwrapped model.
        modules (`Sequence[TrackedModule]`): layers of it.
        projections (`Mapping[str, TwoSidedProjection]`): by module name.
        objective (`Objective`): the per-example loss.
        moments (`Mapping[str, SecondMoments]`, *optional*): by module name; every batch is added to them.
        reductions (`Mapping[str, Reduction]`, *optional*): by module name; by default the gradient is formed.

    Attributes:
        counted (`set[str]`): modules whose moments have the coming batch already, from a pass over it that ended
            halfway. Empty again once a batch is recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[TrackedModule],
        projections: Mapping[str, TwoSidedProjection],
        objective: Objective,
        moments: Mapping[str, SecondMoments] | None = None,
        reductions: Mapping[str, Reduction] | None = None,
    ):
        self.model = model
        self.modules = modules
        self.objective = objective
        self.moments = moments
        self.reductions = reductions or {}
        self._projections = dict(projections)
        self._placed: dict[str, tuple[tuple[torch.device, torch.dtype], TwoSidedProjection]] = {}
        self._gradients: dict[str, Matrices] = {}
        self._tokens: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._calls: dict[str, int] = {}
        self._without_graph: dict[str, None] = {}  # an ordered set
        self._shape: tuple[int, int | None] = (0, None)
        self._warned: set[str] = set()
        self._kept: dict[str, bool] = {}  # by layer: whether no input of it was ever changed in place
        self.counted: set[str] = set()

    def __enter__(self) -> "GradientRecorder":
        self._requires_grad = [(p, p.requires_grad) for p in self.model.parameters()]
        self._training = [(m, m.training) for m in self.model.modules()]
        config: Any = getattr(base_model(self.model), "config", None)
        self._use_cache = [(config, config.use_cache)] if hasattr(config, "use_cache") else []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        try:
            self.model.eval()
            for parameter, _ in self._requires_grad:
                parameter.requires_grad_(False)
            for config, _ in self._use_cache:
                config.use_cache = False
            for tracked in self.modules:
                self._hooks.append(tracked.module.register_forward_hook(self._forward_hook(tracked), with_kwargs=True))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        for module, mode in self._training:
            module.training = mode
        for config, use_cache in self._use_cache:
            config.use_cache = use_cache
        self._gradients, self._tokens, self._placed = {}, {}, {}

    def record(self, batch: Mapping[str, Any], rows: Sequence[int] | None = None) -> Recording:
        """Record one batch.

        Args:
            batch (`Mapping`): tensors with the examples along the first axis; moved to the model's device.
            rows (`Sequence[int]`, *optional*): what to call the examples in an error; by default 0, 1, ...

        Raises:
            [`~lorif_hf.errors.NonFiniteGradientError`]: names the module and the rows.
            [`~lorif_hf.errors.UnsupportedModuleError`]: no tracked layer took part, or one mixes the examples.
        """
        device = next(self.model.parameters()).device
        moved = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}
        size = batch_size(moved)
        rows = range(size) if rows is None else rows
        ids = moved.get("input_ids")
        self._shape = (size, ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 2 else None)
        while (losses := self._passed(moved)) is None:
            pass  # once more: each time, one more layer's inputs are copied
        for name in list(self._tokens):  # of a layer that was called more often than a gradient came back
            self._reduce(name)
        lost = [name for name in self._without_graph if name not in self._gradients]
        if lost:
            raise self._no_graph(lost)
        self._check_finite(losses, rows)
        self.counted = set()
        targets = self.objective.targets(moved)
        return Recording(
            {t.name: self._gradient_of(t, size, device) for t in self.modules},
            losses.detach().cpu().double(),
            None if targets is None else targets.to("cpu", torch.int64),
            self.objective.weights,
        )

    def _passed(self, batch: dict[str, Any]) -> Tensor | None:
        """The losses of a forward and backward pass; `None` where an input that was only held has been changed."""
        self._gradients, self._tokens, self._calls, self._without_graph = {}, {}, {}, {}
        with torch.enable_grad():
            losses = self.objective(self.model, batch)
            if not losses.requires_grad:
                raise self._no_graph([tracked.name for tracked in self.modules])
            try:
                losses.sum().backward()
            except _InputChangedError:
                return None
        return losses

    def _forward_hook(self, tracked: TrackedModule) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                # Reentrant checkpointing: the layer runs again, with gradients, in the backward pass.
                self._without_graph[tracked.name] = None
                return None
            inputs = self._per_example((args[0] if args else next(iter(kwargs.values()))).detach())
            if inputs is not None:
                projection = self._projection(tracked, inputs)
                projected, dtype = project(inputs, projection.in_signs), inputs.dtype
                # Without a projection it is the caller's own tensor, which may be changed in place. (Not noticed: what
                # is written through `.data`.)
                shared = projected.data_ptr() == inputs.data_ptr()
                version = None if inputs.is_inference() else inputs._version
                lent = shared and self._kept.get(tracked.name, False)
                if shared and not lent:
                    projected = projected.clone()
                self._calls[tracked.name] = self._calls.get(tracked.name, 0) + 1
            replaced = None
            if not output.requires_grad:
                # The graph starts here. A copy, so that the caller may still change its output in place.
                output = replaced = output.detach().requires_grad_().clone()

            def accumulate(gradient: Tensor) -> None:
                # DoRA also calls its matrices on an identity; that is no example, and no gradient comes back from it.
                per_example = self._per_example(gradient)
                if inputs is None or per_example is None:
                    raise UnsupportedModuleError(
                        f"Module '{tracked.name}' saw {len(gradient)} rows in a batch of {self._shape[0]} examples, "
                        "so its gradient cannot be told apart by example (a mixture of experts, for instance). Leave "
                        "it out with exclude_modules."
                    )
                kept = version is not None and inputs._version == version
                self._kept[tracked.name] = kept and self._kept.get(tracked.name, True)
                if lent and not kept:
                    raise _InputChangedError
                returned = project(per_example.to(dtype), projection.out_signs)
                tokens = self._tokens.setdefault(tracked.name, [])
                tokens.append((projected, returned))
                # Where checkpoints run a layer again one by one, the last gradient is not known before the end.
                if len(tokens) == self._calls[tracked.name] and tracked.name not in self._without_graph:
                    self._reduce(tracked.name)

            # Most layers return a view of a matrix product. Changing a view in place takes its own node out of the
            # graph, and a hook on it with it; the product's node stays.
            product, shape = output._base, output.shape
            whole = product if product is not None and product.numel() == output.numel() else output
            whole.register_hook(lambda gradient: accumulate(gradient.reshape(shape)))
            return replaced

        return hook

    def _reduce(self, name: str) -> None:
        """Make a layer's gradients of the tokens of all its calls, and let go of them."""
        tokens = self._tokens.pop(name)
        if self.moments is not None and name not in self.counted:
            # All sums before the first is added: one that does not fit into memory leaves nothing half done.
            for sums in [SecondMoments.of(inputs, returned) for inputs, returned in tokens]:
                self.moments[name].add(sums)
            self.counted.add(name)
        inputs, returned = (
            tokens[0] if len(tokens) == 1 else (torch.cat(side, dim=1) for side in zip(*tokens, strict=True))
        )
        self._gradients[name] = self.reductions.get(name, _formed)(inputs, returned)

    def _per_example(self, tensor: Tensor) -> Tensor | None:
        """(B, T, features) of a layer's input or output gradient; `None` where examples cannot be told apart."""
        size, length = self._shape
        if tensor.dim() == 2 and length is not None and length > 1 and len(tensor) == size * length:
            return tensor.view(size, length, -1)  # a model that flattens its tokens before the layer
        if len(tensor) != size:
            return None
        return tensor.reshape(size, -1, tensor.shape[-1])

    def _projection(self, tracked: TrackedModule, inputs: Tensor) -> TwoSidedProjection:
        key = (inputs.device, inputs.dtype)
        placed = self._placed.get(tracked.name)
        if placed is None or placed[0] != key:
            placed = self._placed[tracked.name] = (key, self._projections[tracked.name].to(*key))
        return placed[1]

    def _gradient_of(self, tracked: TrackedModule, size: int, device: torch.device) -> Matrices:
        gradient = self._gradients.get(tracked.name)
        if gradient is not None:
            return gradient
        if tracked.name not in self._warned:
            self._warned.add(tracked.name)
            logger.warning("Module '%s' received no gradient in a batch; it counts as zero there.", tracked.name)
        signs = self._projections[tracked.name]
        d1 = tracked.in_features if signs.in_signs is None else signs.in_signs.shape[1]
        d2 = tracked.out_features if signs.out_signs is None else signs.out_signs.shape[1]
        nothing = torch.zeros(size, 1, d1, device=device), torch.zeros(size, 1, d2, device=device)
        return self.reductions.get(tracked.name, _formed)(*nothing)

    def _no_graph(self, names: Sequence[str]) -> UnsupportedModuleError:
        shown = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
        return UnsupportedModuleError(
            f"No gradient reaches module(s) {shown}: they were not called, or ran without a graph (torch.no_grad, or "
            "activation checkpointing with use_reentrant=True: use False, or switch it off for the recording pass)."
        )

    def _check_finite(self, losses: Tensor, rows: Sequence[int]) -> None:
        for tracked in self.modules:
            gradient = self._gradients.get(tracked.name)
            if gradient is None:
                continue
            # What is not finite in a token is not finite in the gradient's every product.
            numbers = gradient.right if isinstance(gradient, LowRankMatrices) else gradient
            finite = torch.isfinite(numbers.sum(dim=(1, 2)))
            if not bool(finite.all()):
                finite = torch.isfinite(numbers).flatten(1).all(dim=1)
                bad = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
                if bad:
                    raise NonFiniteGradientError(tracked.name, bad)
        if not bool(torch.isfinite(losses).all()):
            bad = [row for row, loss in zip(rows, losses.tolist(), strict=True) if not math.isfinite(loss)]
            raise NonFiniteGradientError("(the loss)", bad)


def without_gradient(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """A reduction for a pass that adds up moments alone: a number of each example, finite where its tokens are."""
    return (inputs.sum(dim=(1, 2)) * 0 + output_gradients.sum(dim=(1, 2)) * 0).view(-1, 1, 1)


def _formed(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """G~ = X^T dY of each example, whole."""
    return inputs.mT @ output_gradients
