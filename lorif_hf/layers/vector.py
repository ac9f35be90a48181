"""Vectors that a module uses among other things: Mamba's D, the layer scale of a block, a class token."""

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from .base import BatchShape, LayerKind, MatrixShape
from .elementwise import is_vector


_OTHERS = (
    nn.ParameterList,
    nn.ParameterDict,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
)


class Vector(LayerKind):
    """A vector of a module that has parts or other parameters, whose output says nothing of it.

    It is followed through the functions that it takes part in: products and sums with what passes through the model,
    and copies of it for each example. What else is done with it (an exponential) is not seen, which the check of the
    first batch finds.
    """

    name = "vector"
    linear = False
    forward_of = ()  # no module's calls tell all

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        held = module._parameters[parameter]
        # From some a weight is computed, some go through functions of many steps.
        computed = type(module).__name__ == "ParametrizationList" or f"{parameter[:-2]}_v" in module._parameters
        return held is not None and is_vector(held) and not computed and not isinstance(module, _OTHERS)

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(1, getattr(module, parameter).numel())

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> NoReturn:
        raise AssertionError("a vector is followed; its module's calls are not recorded")
