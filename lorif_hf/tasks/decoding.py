"""What models with an encoder and a decoder have in common, whatever the encoder takes."""

from typing import Any, ClassVar

from torch import Tensor, nn

from .base import Task, forward_inputs
from .cross_entropy import IGNORED, cross_entropy
from .model_classes import classes_of


class EncoderDecoder(Task):
    """Cross-entropy of a text's tokens given what was encoded, summed over the labels that are not -100.

    The model makes its decoder's inputs of the labels by itself, as in training. A kind says which classes of
    transformers it is of, and how a query of it is written.

    Attributes:
        table (`str`): as of [`classes_of`].
    """

    needs_labels = True
    makes_labels = False
    labelled_queries = False
    label_kind = "tokens"
    table: ClassVar[str]

    def accepts(self, model: nn.Module) -> bool:
        encodes: Any = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return bool(encodes) and type(model).__name__ in classes_of(self.table)

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return decoder_logits(model, batch), batch["labels"]


def decoder_logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Logits (B, T, vocabulary) of each label, float32.

    Args:
        model (`nn.Module`): the unwrapped model. It gets the labels, of which it makes the inputs of its decoder where
            the batch has none; what it makes of a loss is not used.
        batch (`dict`): with `labels` (B, T).
    """
    logits: Tensor = model(**forward_inputs(model, batch), labels=batch["labels"]).logits
    return logits.float()
