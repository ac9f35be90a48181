"""Following a weight through the functions that it takes part in, where its module's calls do not tell all.

A subclass of `nn.Linear` may change its input or its output; Mamba multiplies with the weight of a layer that it never
calls; two modules may share a weight. What is the same in all of them: a product of tokens with that weight.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..layers.modules import TrackedModule
from .followed_functions import uses_of
from .followed_lookups import Lookup, lookup_of
from .followed_rows import ReplacedRows
from .layer_hook import LayerHook


class ParameterFollower(TorchFunctionMode):
    """While it is entered, every product of tokens with a followed weight is seen by the weight's hook.

    Seen are `linear`, `matmul`, `mm` and `addmm` with the weight, its transpose, or either in another dtype, and what
    [`followed_functions`] tells of convolutions and vectors, [`followed_lookups`] of tables. What else is done with it
    (a product with a part of it, an einsum) is not: its gradient is then not all recorded, which the check of the
    first batch finds.

    Args:
        hooks (`Iterable[LayerHook]`): of the layers whose weights are followed.
    """

    def __init__(self, hooks: Iterable[LayerHook]):
        super().__init__()
        self._hooks = {hook.tracked.weight.data_ptr(): hook for hook in hooks}
        self._casts: dict[int, tuple[Tensor, LayerHook]] = {}  # copies of a weight in another dtype, kept for a pass
        self._rows = ReplacedRows(self._hook_of)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in COPIES and isinstance(result, Tensor) and isinstance(args[0], Tensor):
            hook = self._hook_of(args[0])
            if hook is not None and result.data_ptr() != args[0].data_ptr():
                self._casts[result.data_ptr()] = (result, hook)
            return result
        if not torch.is_grad_enabled() or not isinstance(result, Tensor):
            return result
        self._rows.note(func, args, kwargs, result)
        result = self._rows.seen(func, args, kwargs, result)
        for use in uses_of(func, args, kwargs, self._hook_of):
            told = use.tokens(use.hook.batch)
            replaced = None if told.inputs is None else use.hook.see(told.inputs, result, told.output_gradients)
            result = result if replaced is None else replaced
        looked_up = lookup_of(func, args, kwargs)
        if looked_up is not None:
            return self._seen_lookup(looked_up, result)
        operands = OPERANDS.get(func)
        if operands is None:
            return result
        left, right, transposed = operands(*args, **kwargs)
        if not isinstance(left, Tensor) or not isinstance(right, Tensor):
            return result
        replaced = self._seen(right, left, result, transposed, on_the_right=True)
        if replaced is None:
            replaced = self._seen(left, right, result, transposed, on_the_right=False)
        return result if replaced is None else replaced

    def _seen(self, weight: Tensor, tokens: Tensor, result: Tensor, transposed: bool, on_the_right: bool) -> Any:
        """The product's result as the hook gives it back; `None` where it is no product with a followed weight."""
        hook = self._hook_of(weight) if weight.dim() == 2 else None
        if hook is None:
            return None
        # As multiplied from the right: tokens (..., I) times (I, O).
        used = weight.mT if transposed else weight
        if not on_the_right:
            used, tokens = used.mT, tokens.mT if tokens.dim() > 1 else tokens
        turned = _turned(used, hook.tracked)
        if turned is None:
            return None
        flipped = not on_the_right and result.dim() > 1
        apart = hook.batch.per_example

        def output_gradients(gradient: Tensor) -> Tensor | None:
            return apart(gradient.mT if flipped else gradient)

        replaced = hook.see(apart(tokens), result, output_gradients, turned=turned)
        return result if replaced is None else replaced

    def _seen_lookup(self, looked_up: Lookup, result: Tensor) -> Tensor:
        """What was looked up in a table, as the hook gives it back."""
        table = looked_up.table
        hook = self._hook_of(table) if table.dim() == 2 else None
        if hook is None or _turned(table, hook.tracked) is not False:
            return result
        tokens = looked_up.tokens(hook.batch)
        if tokens is None:
            return result
        replaced = hook.see(tokens.inputs, result, tokens.output_gradients, tokens.common)
        return result if replaced is None else replaced

    def _hook_of(self, tensor: Tensor) -> LayerHook | None:
        """The hook of the weight that a tensor is, in another shape or dtype perhaps."""
        address = tensor.data_ptr()
        hook = self._hooks.get(address)
        if hook is None and address in self._casts:
            hook = self._casts[address][1]
        # The part at its start has the same address.
        return hook if hook is not None and tensor.numel() == hook.tracked.weight.numel() else None


def _turned(used: Tensor, tracked: TrackedModule) -> bool | None:
    """Whether a weight as multiplied from the right is the transpose of the kind's matrix; `None`: it is neither."""
    matrix = tracked.kind.as_matrix(tracked.weight)
    if used.shape == matrix.shape == matrix.mT.shape:
        return used.stride() != matrix.stride()
    return {matrix.shape: False, matrix.mT.shape: True}.get(used.shape)


def _linear(input: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, bool]:
    return input, weight, True


def _product(input: Any, other: Any = None, *, mat2: Any = None, **_: Any) -> tuple[Any, Any, bool]:
    return input, mat2 if other is None else other, False


def _reflected(input: Any, other: Any) -> tuple[Any, Any, bool]:
    return other, input, False


def _added(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1, out: Any = None) -> Any:
    return (mat1, mat2, False) if alpha == 1 else (None, None, False)


OPERANDS: dict[Any, Callable[..., tuple[Any, Any, bool]]] = {
    F.linear: _linear,
    torch.matmul: _product,
    torch.mm: _product,
    torch.addmm: _added,
    Tensor.matmul: _product,
    Tensor.mm: _product,
    Tensor.addmm: _added,
    Tensor.__matmul__: _product,
    Tensor.__rmatmul__: _reflected,
    operator.matmul: _product,
}
COPIES = {Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as}
