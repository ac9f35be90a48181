"""What models with an encoder and a decoder have in common, whatever the encoder takes."""

from typing import Any

from torch import Tensor, nn

from .base import forward_inputs


def decoder_logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Logits (B, T, vocabulary) of each label, float32.

    Args:
        model (`nn.Module`): the unwrapped model. It gets the labels, of which it makes the inputs of its decoder where
            the batch has none; what it makes of a loss is not used.
        batch (`dict`): with `labels` (B, T).
    """
    logits: Tensor = model(**forward_inputs(model, batch), labels=batch["labels"]).logits
    return logits.float()
