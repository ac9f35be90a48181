"""Following a stack of matrices through the products that each of them takes part in.

A module that sorts its tokens by expert multiplies them with one matrix of the stack after another, or with all of
them at once. Each such product is one of tokens with the stack's blocks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..algebra.sides import Blocks
from .following import COPIES, OPERANDS
from .layer_hook import LayerHook


class StackFollower(TorchFunctionMode):
    """While it is entered, every product of tokens with a matrix of a stack, or with the stack, is seen by its hook.

    Whose the tokens of one matrix are is not known, but where rows go one at a time; those of a product with the whole
    stack are known where every matrix meets all tokens. A plain matrix may be used as a stack of its rows.

    Args:
        hooks (`Iterable[LayerHook]`): of layers whose weights are stacks, (E, I, O) or (E, O, I), or plain matrices.
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
            if place is not None and _is_whole(args[0], place[0]) and result.data_ptr() != args[0].data_ptr():
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
        if place is None or not _is_whole(weight, place[0]):
            return result
        used = weight.mT if transposed else weight
        product = _Product.of(used, *place, tokens, result)
        replaced = None if product is None else product.see(result)
        return result if replaced is None else replaced


@dataclass(frozen=True)
class _Product:
    """A product of tokens with one matrix of a stack, (..., I), or with each of them, (E, n, I).

    Args:
        hook (`LayerHook`): the stack's.
        tokens (`Tensor`): what was multiplied from the left.
        count (`int`): E.
        block (`int` or `None`): which matrix; `None`: all.
        turned (`bool`): whether they are transposed matrices of the kind's.
    """

    hook: LayerHook
    tokens: Tensor
    count: int
    block: int | None
    turned: bool

    @classmethod
    def of(cls, used: Tensor, hook: LayerHook, block: int, tokens: Tensor, result: Tensor) -> "_Product | None":
        """That of tokens with what is used of a stack; `None`: it is none that is known."""
        weight, kind = hook.tracked.weight, hook.tracked.kind
        if used.dim() == 2:
            if weight.dim() == 2:
                return None  # a plain matrix, which is followed as one
            matrix, count = kind.as_matrix(weight[:1]), len(weight)
        else:
            count = len(used)
            if tokens.dim() > 3 or result.shape[0] != count:
                return None
            tokens = tokens.expand(count, -1, -1)
            whole = kind.as_matrix(weight)
            matrix = whole[:, : whole.shape[1] // count] if weight.dim() == 2 else kind.as_matrix(weight[:1])
        turned = _turned(used, matrix)
        if turned is None or (turned and weight.dim() == 2):
            return None
        return cls(hook, tokens, count, block if used.dim() == 2 else None, turned)

    def see(self, result: Tensor) -> Tensor | None:
        """Have the hook take note of it."""
        if self.turned:  # what is multiplied is what the kind's matrix would give
            return self.hook.see(self._in_block(self.tokens), result, self._apart, turned=True)
        return self.hook.see(self._apart(self.tokens), result, self._in_block)

    def _apart(self, tensor: Tensor) -> Tensor | None:
        """(..., F), or (E, n, F) of all matrices, as (B, T, F)."""
        batch = self.hook.batch
        if self.block is None:
            tokens, size = tensor.shape[1:]
            apart = batch.per_example(tensor.transpose(0, 1).reshape(tokens, -1))
            return None if apart is None else apart.reshape(len(apart), -1, size)
        # Of tokens in one row it is not said which those are that the matrix met.
        return batch.per_example(tensor) if batch.examples == 1 or tensor.dim() > 2 else None

    def _in_block(self, tensor: Tensor) -> Blocks | None:
        values = self._apart(tensor)
        if values is None:
            return None
        shape, device = values.shape[:2], values.device
        if self.block is None:
            blocks = torch.arange(self.count, device=device).repeat(shape[1] // self.count).expand(shape)
        else:
            blocks = torch.full(shape, self.block, device=device)
        return Blocks(values.detach(), blocks, self.count)


def _is_whole(weight: Tensor, hook: LayerHook) -> bool:
    """Whether it is a whole matrix of a stack, or all of it: parts at its start have the same address."""
    stack = hook.tracked.weight
    return weight.numel() == (stack[0].numel() if weight.dim() < stack.dim() else stack.numel())


def _turned(used: Tensor, matrix: Tensor) -> bool | None:
    """Whether matrices as multiplied from the right are transposed (I, O) ones; `None`: they are neither."""
    if used.shape[-2:] == matrix.shape == matrix.mT.shape:
        return used.stride()[-2:] != matrix.stride()
    return {matrix.shape: False, matrix.mT.shape: True}.get(used.shape[-2:])


def _batched(input: Any, mat2: Any) -> tuple[Any, Any, bool]:
    return input, mat2, False
