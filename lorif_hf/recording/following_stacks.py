"""Following a stack of matrices through the products that each of them takes part in.

A module that sorts its tokens by expert multiplies them with one matrix of the stack after another, or with all of
them at once. Each such product is one of tokens with the stack's blocks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..algebra.sides import Blocks
from ..layers import BatchShape
from .following import COPIES, OPERANDS
from .layer_hook import LayerHook


class StackFollower(TorchFunctionMode):
    """While it is entered, every product of tokens with a matrix of a stack, or with the stack, is seen by its hook.

    Whose the tokens of one matrix are is not known, but where rows go one at a time; those of a product with the whole
    stack are known where every matrix meets all tokens.

    Args:
        hooks (`Iterable[LayerHook]`): of layers whose weights are stacks, (E, I, O) or (E, O, I).
    """

    def __init__(self, hooks: Iterable[LayerHook]):
        super().__init__()
        self._places: dict[int, tuple[LayerHook, int]] = {}  # where each matrix begins
        self._copies: list[Tensor] = []  # in another dtype, kept for a pass
        for hook in hooks:
            self._add(hook.tracked.weight, hook, 0)

    def _add(self, weight: Tensor, hook: LayerHook, first: int) -> None:
        matrices = weight.unsqueeze(0) if weight.dim() == 2 else weight
        for number, matrix in enumerate(matrices.detach()):
            self._places[matrix.data_ptr()] = hook, first + number

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in COPIES and isinstance(result, Tensor) and isinstance(args[0], Tensor):
            place = self._places.get(args[0].data_ptr()) if args[0].dim() in (2, 3) else None
            if place is not None and _is_matrix(args[0], place[0]) and result.data_ptr() != args[0].data_ptr():
                self._copies.append(result)
                self._add(result, *place)
            return result
        operands = _batched if func in (torch.bmm, Tensor.bmm) else OPERANDS.get(func)
        if operands is None or not torch.is_grad_enabled():
            return result
        tokens, weight, transposed = operands(*args, **kwargs)
        if not isinstance(tokens, Tensor) or not isinstance(weight, Tensor) or weight.dim() not in (2, 3):
            return result
        place = self._places.get(weight.data_ptr())
        if place is None or not _is_matrix(weight, place[0]):
            return result
        hook, first = place
        used = weight.mT if transposed else weight
        if not _same_side(used, hook):
            return result
        replaced = _seen(hook, first, tokens, result) if used.dim() == 2 else _seen_whole(hook, tokens, result)
        return result if replaced is None else replaced


def _seen(hook: LayerHook, block: int, tokens: Tensor, result: Tensor) -> Tensor | None:
    """A product of tokens (..., I) with one matrix."""
    batch, count = hook.batch, len(hook.tracked.weight)

    def apart(tensor: Tensor) -> Tensor | None:
        # Of tokens in one row it is not said which those are that the matrix met.
        return batch.per_example(tensor) if batch.examples == 1 or tensor.dim() > 2 else None

    def output_gradients(gradient: Tensor) -> Blocks | None:
        values = apart(gradient)
        if values is None:
            return None
        return Blocks(values, torch.full(values.shape[:2], block, device=values.device), count)

    return hook.see(apart(tokens), result, output_gradients)


def _seen_whole(hook: LayerHook, tokens: Tensor, result: Tensor) -> Tensor | None:
    """A product of tokens, (E, n, I) or the same (n, I) for each, with all matrices: (E, n, O)."""
    batch, count = hook.batch, len(hook.tracked.weight)
    if tokens.dim() > 3 or result.shape[0] != count:
        return None

    def output_gradients(gradient: Tensor) -> Blocks | None:
        values = _by_token(gradient, batch)
        if values is None:
            return None
        blocks = torch.arange(count, device=values.device).repeat(values.shape[1] // count)
        return Blocks(values, blocks.expand(values.shape[:2]), count)

    return hook.see(_by_token(tokens.expand(count, -1, -1), batch), result, output_gradients)


def _by_token(tensor: Tensor, batch: BatchShape) -> Tensor | None:
    """(E, n, F) as (B, T E, F)."""
    count, tokens, size = tensor.shape
    apart = batch.per_example(tensor.transpose(0, 1).reshape(tokens, count * size))
    return None if apart is None else apart.reshape(len(apart), -1, size)


def _is_matrix(weight: Tensor, hook: LayerHook) -> bool:
    """Whether it is a whole matrix of a stack, or all of it: parts at its start have the same address."""
    stack = hook.tracked.weight
    return weight.numel() == (stack[0].numel() if weight.dim() == 2 else stack.numel())


def _same_side(used: Tensor, hook: LayerHook) -> bool:
    """Whether a matrix, or all, as multiplied from the right are (I, O), and not transposed."""
    matrix = hook.tracked.kind.as_matrix(hook.tracked.weight[:1])
    return used.shape[-2:] == matrix.shape and (
        matrix.shape[0] != matrix.shape[1] or used.stride()[-2:] == matrix.stride()
    )


def _batched(input: Any, mat2: Any) -> tuple[Any, Any, bool]:
    return input, mat2, False
