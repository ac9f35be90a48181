"""Modules that are no `nn.Linear` and multiply with a weight as one does: the routers of mixtures of experts."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .base import BatchShape, LayerKind, MatrixShape, Tokens, first_argument


class Router(LayerKind):
    """A `weight` (O, I) that a module hands to `torch.nn.functional.linear` itself.

    What the module returns is what it makes of that product, so that the weight is always followed. Which modules do
    so is read off the names in their `forward`.
    """

    name = "router"
    linear = True
    forward_of = nn.Linear  # which none of them has

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        weight = module._parameters[parameter]
        if parameter != "weight" or weight is None or weight.dim() != 2 or not weight.is_floating_point():
            return False
        if isinstance(module, (nn.Linear, nn.Embedding)):
            return False
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        return code is not None and {"linear", "weight"} <= set(code.co_names)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        size_out, size_in = module._parameters[parameter].shape  # type: ignore[union-attr]
        return MatrixShape(size_in, size_out)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return Tokens(batch.per_example(first_argument(args, kwargs)), batch.per_example)
