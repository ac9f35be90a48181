"""Tables of positions that are bare parameters, as vision transformers have them."""

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from .base import BatchShape, LayerKind, MatrixShape


class Positions(LayerKind):
    """A table (N, O), or (1, N, O), of which every example of N tokens gets row n at its n-th: X is an identity.

    Taken for such are parameters called so ("position_embeddings", "pos_embed"). They are followed to where they are
    added; what else is done with them (a part taken, interpolated) is not seen, which the check of the first batch
    finds.
    """

    name = "positions"
    linear = False
    forward_of = ()  # no module's calls tell all

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        held = module._parameters[parameter]
        table = held is not None and held.dim() >= 2 and held.numel() == held.shape[-2] * held.shape[-1]
        return table and "pos" in parameter.lower() and held.is_floating_point()  # type: ignore[union-attr]

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        return MatrixShape(*getattr(module, parameter).shape[-2:])

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(weight.shape[-2:])

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> NoReturn:
        raise AssertionError("a table is followed; its module's calls are not recorded")
