"""Matrices that PEFT keeps as bare parameters: LoRA's over an embedding, and the rows of tokens that are trained."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .base import BatchShape, LayerKind, MatrixShape, Tokens


_WIDEST, _KEPT = 8192, 512  # a side that is wider is a vocabulary, of which a gradient has a few rows


class AdapterMatrix(LayerKind):
    """An entry of an `nn.ParameterDict`, (O, I): `lora_embedding_A` (r, V) and `lora_embedding_B` (H, r), and
    `trainable_tokens_delta` (tokens, H).

    A dictionary is never called: its entries are followed through the lookups and products that they take part in.
    """

    name = "adapter-matrix"
    linear = True
    forward_of = nn.Linear  # which no dictionary has

    def accepts(self, module: nn.Module, parameter: str) -> bool:
        entry = module._parameters[parameter]
        matrix = entry is not None and entry.dim() == 2 and entry.is_floating_point()
        return isinstance(module, nn.ParameterDict) and matrix

    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        size_out, size_in = module._parameters[parameter].shape  # type: ignore[union-attr]
        return MatrixShape(size_in, size_out, in_width=_KEPT if size_in > _WIDEST else None)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.mT

    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        return Tokens(None, batch.per_example)
