"""The hook on one tracked layer: inputs are projected as they pass, output gradients as they come back."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.projection import BlockSigns, TwoSidedProjection
from ..algebra.sides import Side, cast_side, project_side, scale_side, side_on
from ..errors import UnsupportedModuleError
from ..layers import BatchShape
from ..layers.modules import TrackedModule
from ..layers.probing import is_probing


class InputChangedError(Exception):
    """An input that was held instead of copied was changed in place after its layer had seen it."""


class LayerHook:
    """What is seen of a tracked layer: a forward hook on its module, or what a [`ParameterFollower`] calls.

    Args:
        tracked (`TrackedModule`): the layer.
        projection (`TwoSidedProjection`): its projection, on the CPU.
        complete (`Callable`): told once a gradient came back for every call of the layer.
        scale (`Tensor`, *optional*): float32 (I,), what the inputs are multiplied with before they are projected.
        keeps_wide (`bool`, *optional*, defaults to `False`): whether the inputs are wanted as they are, too.

    Attributes:
        tokens (`list[tuple[Tensor, Tensor]]`): per call whose gradient came back, projected inputs float32 (B, T, d1)
            and output gradients (B, T, d2).
        wide (`list[tuple[Side, Tensor]]`): the same with the inputs (B, T, I) as they are, where they are wanted.
        calls (`int`): calls of the layer in this pass, with a graph.
        ran_without_graph (`bool`): whether it was called without one. Reentrant checkpoints do: there the layer runs
            again, with gradients, in the backward pass.
        used_elsewhere (`bool`): whether another thread called it meanwhile; such calls are let through, not recorded.
        dtype (`torch.dtype` or `None`): of its outputs, once there were some.
    """

    def __init__(
        self,
        tracked: TrackedModule,
        projection: TwoSidedProjection,
        complete: Callable[["LayerHook"], None],
        scale: Tensor | None = None,
        keeps_wide: bool = False,
    ):
        self.tracked = tracked
        self.complete = complete
        self.keeps_wide = keeps_wide
        self._scale = scale
        self._signs = (projection.in_signs, projection.out_signs)
        self._placed: dict[bool, tuple[tuple[torch.device, torch.dtype], Tensor | BlockSigns]] = {}
        self.inputs_stay: bool | None = None  # whether no input so far was changed in place; `None`: none was seen
        self.used_elsewhere = False
        self.dtype: torch.dtype | None = None
        self.begin(BatchShape(0, None))

    def begin(self, batch: BatchShape) -> None:
        """Forget the pass before, and be ready for a batch."""
        self.batch = batch
        self._thread = threading.current_thread()
        self.tokens: list[tuple[Tensor, Tensor]] = []
        self.wide: list[tuple[Side, Tensor]] = []
        self.calls = 0
        self.ran_without_graph = False

    def release(self) -> None:
        """Let go of everything that was made for the passes."""
        self.begin(BatchShape(0, None))
        self._placed = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if is_probing():
            return None
        tracked = self.tracked
        if not isinstance(output, Tensor):
            raise self.unsupported(
                f"(a {type(module).__name__}) returns a {type(output).__name__} instead of a tensor. Leave it out"
            )
        if not torch.is_grad_enabled():
            return self.see(None, output, lambda gradient: None)
        try:
            tokens = tracked.kind.tokens(module, tracked.parameter, args, kwargs, self.batch)
        except UnsupportedModuleError as error:
            raise self.unsupported(f"cannot be tracked: {error}. Leave it out") from error
        return self.see(tokens.inputs, output, tokens.output_gradients, common=tokens.common)

    def unsupported(self, why: str) -> UnsupportedModuleError:
        """The error about this module, which may be left out."""
        name = self.tracked.name
        return UnsupportedModuleError(f"Module '{name}' {why} with exclude_modules=['{name}'].", name)

    def see(
        self,
        inputs: Side | None,
        output: Tensor,
        output_gradients: Callable[[Tensor], Side | None],
        common: bool = False,
        turned: bool = False,
    ) -> Tensor | None:
        """Take note of a product of inputs with the weight.

        Args:
            inputs (`Side` or `None`): X of the call, (B, T, I); `None` where the examples cannot be told apart.
            output (`Tensor`): what came out.
            output_gradients (`Callable`): from the gradient with regard to `output` to dY, (B, T, O), or `None`.
            common (`bool`, *optional*, defaults to `False`): as of [`~lorif_hf.layers.Tokens`].
            turned (`bool`, *optional*, defaults to `False`): whether the product is with the transposed weight, as
                that of a head that is tied to an embedding: then `inputs` are dY, and X is what comes back.

        Returns:
            `Tensor` or `None`: what takes the output's place, if anything.
        """
        thread = threading.current_thread()
        # A thread of autograd itself, which runs checkpoints again on a GPU, is none of Python's.
        if thread is not self._thread and not isinstance(thread, threading._DummyThread):
            self.used_elsewhere = True
            return None
        if not torch.is_grad_enabled():
            self.ran_without_graph = True
            return None
        self.dtype = output.dtype
        # A layer may compute elsewhere than where its inputs come from: accelerate brings them there inside of it.
        inputs = None if inputs is None else side_on(inputs, output.device)
        inputs = inputs.detach() if isinstance(inputs, Tensor) else inputs
        replaced = None
        if common:
            output = output if output.dim() > 2 else output.unsqueeze(0)
            sequences = self.batch.examples * self.batch.sequences
            output = replaced = output.expand(sequences, *output.shape[1:]).clone()
        if not output.requires_grad:
            # The graph starts here. A copy, so that the caller may still change its output in place.
            output = replaced = output.detach().requires_grad_().clone()
        # Most layers return a view of a matrix product. Changing a view in place takes its own node out of the graph,
        # and a hook on it with it; the product's node stays.
        product = output._base
        if product is not None and (product.numel() != output.numel() or not product.is_contiguous()):
            product = None
        call = _Call(self, inputs, output, product is not None, output_gradients, turned)
        (output if product is None else product).register_hook(call.receive)
        return replaced

    def projected(self, side: Side, of_outputs: bool) -> Tensor:
        """X or dY of a call as it is recorded: (B, T, d1) or (B, T, d2)."""
        if self._scale is not None and not of_outputs:
            self._scale = self._scale.to(side.device)
            side = scale_side(side, self._scale)
        signs = self._signs[of_outputs]
        if signs is None:
            return project_side(side, None)
        key = (side.device, side.dtype)
        if of_outputs not in self._placed or self._placed[of_outputs][0] != key:
            self._placed[of_outputs] = (key, signs.to(*key))
        return project_side(side, self._placed[of_outputs][1])


class _Call:
    """A call of the layer, until its gradient comes back: the second side of the product."""

    def __init__(
        self,
        hook: LayerHook,
        given: Side | None,
        output: Tensor,
        is_view: bool,
        returned: Callable[[Tensor], Side | None],
        turned: bool,
    ):
        self.hook, self.given, self.returned, self.turned = hook, given, returned, turned
        self.shape, self._strides = output.shape, output.stride() if is_view else None
        if given is None:
            return
        self.projected = hook.projected(given, of_outputs=turned)
        # Without a projection it is the caller's own tensor, which may be changed in place. (Not noticed: what is
        # written through `.data`.)
        self.watched = given if isinstance(given, Tensor) else self.projected
        shared = self.projected.data_ptr() == self.watched.data_ptr() and isinstance(given, Tensor)
        self.version = None if self.watched.is_inference() else self.watched._version
        self.held = shared and hook.inputs_stay is True
        if shared and not self.held:
            self.projected = self.projected.clone()
        self.wide = given.clone() if hook.keeps_wide and not turned and isinstance(given, Tensor) else given
        hook.calls += 1

    def receive(self, gradient: Tensor) -> None:
        """Take in the gradient with regard to the layer's output."""
        # DoRA also calls its matrices on an identity; that is no example, and no gradient comes back from it.
        hook = self.hook
        if self._strides is not None:  # it is that of the whole, of which the output is another view
            gradient = gradient.contiguous().as_strided(self.shape, self._strides)
        per_example = self.returned(gradient)
        if self.given is None or per_example is None:
            rows = self.shape[0] if self.shape else 1
            raise hook.unsupported(
                f"saw {rows} rows in a batch of {hook.batch.examples} examples, so its gradient cannot be told apart "
                "by example. Record one row at a time, where all of it is that row's (objective='model'), or leave it "
                "out"
            )
        stayed = self.version is not None and self.watched._version == self.version
        hook.inputs_stay = stayed and hook.inputs_stay is not False
        if self.held and not stayed:
            raise InputChangedError
        returned = cast_side(per_example, self.given.dtype)
        projected = hook.projected(returned, of_outputs=not self.turned)
        inputs, gradients = (projected, self.projected) if self.turned else (self.projected, projected)
        hook.tokens.append((inputs, gradients))
        if hook.keeps_wide:
            hook.wide.append((returned if self.turned else self.wide, gradients))
        # Where checkpoints run a layer again one by one, the last gradient is not known before the end.
        if len(hook.tokens) == hook.calls and not hook.ran_without_graph:
            hook.complete(hook)
