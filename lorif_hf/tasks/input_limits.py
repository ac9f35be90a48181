"""What a model can take at most: tokens of its vocabulary, positions and token types of its tables."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QueryError
from ..layers.modules import base_model


# What transformers calls the learned table of a text's positions. It stands beside the table of the tokens; those of
# images and of relative distances do not.
_POSITIONS = ("position_embeddings", "embed_positions", "wpe", "positions_embed", "position_embedding")
_FIXED_POSITIONS = ("embed_positions", "pos_encoding")  # tensors of GPT-J and CTRL: computed, but not beyond their end
_TOKEN_TYPES = "token_type_embeddings"

_OF_TOKENS = ("attention_mask", "token_type_ids", "position_ids")  # one number for each token


class InputLimits:
    """The sizes of a model's tables. A model without a table has no limit: rotary positions go on for ever.

    What a config calls `max_position_embeddings` is no limit: XLNet says -1, a rotary model goes beyond it, and
    RoBERTa counts its positions from `padding_idx + 1`.

    Args:
        model (`nn.Module`): the unwrapped model.

    Attributes:
        vocabulary (`int`): how many tokens the model knows; 0 where it does not tell.
        positions (`int`): how many tokens it takes; 0: as many as there are.
        token_types (`int`): how many types of tokens it knows; 0 where it does not tell.
        classes (`int`): how many labels a classifier knows; 0 where it does not tell.
    """

    def __init__(self, model: nn.Module):
        base = base_model(model)
        try:
            self.vocabulary: int = getattr(base.get_input_embeddings(), "num_embeddings", 0)  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            self.vocabulary = 0
        config: Any = getattr(base, "config", None)
        # An encoder may take more tokens than its decoder (LED), and those are the `input_ids`.
        encoder = base.get_encoder() if getattr(config, "is_encoder_decoder", False) is True else base
        modules = list((encoder if isinstance(encoder, nn.Module) else base).modules())
        beside = [
            (name, table)
            for module in modules
            if self.vocabulary and any(_rows(child) == self.vocabulary for child in module.children())
            for name, table in module.named_children()
            if _rows(table)
        ]
        learned = [_positions(table) for name, table in beside if name in _POSITIONS]
        tensors = [getattr(module, name, None) for module in modules for name in _FIXED_POSITIONS]
        fixed = [len(tensor) for tensor in tensors if isinstance(tensor, Tensor) and tensor.dim() == 2]
        by_cell = getattr(config, "reset_position_index_per_cell", False)  # TAPAS, which stays at its last position
        self.positions = 0 if by_cell else min([*learned, *fixed], default=0)
        self.classes: int = getattr(config, "num_labels", 0)
        self.token_types = min((_rows(table) for name, table in beside if name == _TOKEN_TYPES), default=0)

    def check(self, feature: dict[str, Any], number: int, labels_are_tokens: bool, axes: int = 1) -> None:
        """Whether the model can take a query: one row of tokens, each known, not too many, and what goes with them.

        Args:
            feature (`dict`): the query; one without `input_ids` is not looked at.
            number (`int`): the query's, for errors.
            labels_are_tokens (`bool`): whether its labels are token ids, one for each token.
            axes (`int`, *optional*, defaults to 1): of its `input_ids`: rows of tokens for each choice have two.

        Raises:
            [`~lorif_hf.errors.QueryError`]: it cannot.
        """
        if feature.get("input_ids") is None:
            return
        ids = _whole_numbers(feature["input_ids"], "input_ids", number)
        if ids.dim() != axes:
            rows = "one row of tokens" if axes == 1 else "a row of tokens for each choice"
            raise QueryError(f"Query {number} has input_ids of shape {tuple(ids.shape)}: expected {rows}.")
        if not ids.numel():
            raise QueryError(f"Query {number} is empty: it has no token.")
        if self.positions and ids.shape[-1] > self.positions:
            raise QueryError(
                f"Query {number} has {ids.shape[-1]} tokens, the model takes at most {self.positions}: shorten it."
            )
        self._check_tokens(ids, f"Query {number} holds token")
        aligned = [name for name in (*_OF_TOKENS, "labels") if feature.get(name) is not None]
        for name in aligned if labels_are_tokens else [name for name in aligned if name != "labels"]:
            # Masks may be 4-dimensional and of floats, positions of three axes: those are the model's own business.
            values = _numbers(feature[name], name, number)
            if values.dim() == 1 and len(values) != len(ids):
                raise QueryError(
                    f"Query {number} has {len(ids)} tokens, but {len(values)} of {name}: expected as many."
                )
        if labels_are_tokens and feature.get("labels") is not None:
            labels = _whole_numbers(feature["labels"], "labels", number)
            self._check_tokens(labels[labels != -100], f"Query {number} has a label of token")
        if self.token_types and feature.get("token_type_ids") is not None:
            types = _whole_numbers(feature["token_type_ids"], "token_type_ids", number)
            _check(types, self.token_types, f"Query {number} has token type", "token types")

    def check_class(self, feature: dict[str, Any], number: int) -> None:
        """Raises [`~lorif_hf.errors.QueryError`] where the number of a query's class is none of the classifier's."""
        for name in ("label", "labels", "label_ids"):
            if feature.get(name) is not None and self.classes > 1:
                label = _numbers(feature[name], name, number)
                if (
                    label.dim() == 0
                    and not label.is_floating_point()
                    and int(label) not in (-100, *range(self.classes))
                ):
                    raise QueryError(f"Query {number} has label {int(label)}, the model knows {self.classes} labels.")

    def _check_tokens(self, ids: Tensor, subject: str) -> None:
        _check(ids, self.vocabulary, subject, "tokens", ": it was made with another tokenizer")


def _check(values: Tensor, count: int, subject: str, kind: str, reason: str = "") -> None:
    unknown = values[(values < 0) | (values >= count)] if count else values[:0]
    if unknown.numel():
        raise QueryError(f"{subject} {int(unknown.flatten()[0])}, the model knows {count} {kind}{reason}.")


def _numbers(values: Any, name: str, number: int) -> Tensor:
    """Numbers of a query as a tensor."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise QueryError(f"Query {number} has {name} that are no numbers ({error}): expected integers.") from None


def _whole_numbers(values: Any, name: str, number: int) -> Tensor:
    """Whole numbers of a query as int64."""
    tensor = _numbers(values, name, number)
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise QueryError(f"Query {number} has {name} of {tensor.dtype}: expected integers.")
    return tensor.long()


def _rows(module: nn.Module) -> int:
    rows = getattr(module, "num_embeddings", 0)
    return rows if isinstance(rows, int) else 0


def _positions(table: nn.Module) -> int:
    """How many tokens a table of positions has room for, without the rows that it keeps for other things."""
    padding, offset = getattr(table, "padding_idx", None), getattr(table, "offset", 0)
    first = 0 if padding is None else padding + 1
    return _rows(table) - first - (offset if isinstance(offset, int) else 0)
