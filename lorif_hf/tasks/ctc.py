"""Speech recognition by connectionist temporal classification (CTC)."""

from typing import Any

from torch import Tensor, nn

from ..layers.modules import base_model
from .base import Feature, Task, forward_inputs, no_margin
from .classification import no_text
from .cross_entropy import IGNORED
from .model_classes import classes_of
from .text import TextReader


class CTC(Task):
    """-log p(transcript) of each recording, or that divided by its length where the model's `ctc_loss_reduction` is
    "mean": what the model's own loss gives of the recording alone.

    It is measured in evaluation mode: without the masks (SpecAugment), the dropped layers and the dropout of training.
    """

    name = "ctc"
    auto_class = "AutoModelForCTC"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '{"input_values": samples, "labels": tokens}'
    label_kind = "tokens"
    decoded = ("labels",)

    def accepts(self, model: nn.Module) -> bool:
        return type(model).__name__ in classes_of("CTC")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        config: Any = base_model(model).config
        reduction = config.ctc_loss_reduction
        config.ctc_loss_reduction = "none"
        try:
            losses: Tensor = model(**forward_inputs(model, batch), labels=batch["labels"]).loss
        finally:
            config.ctc_loss_reduction = reduction
        if reduction == "mean":
            labels = batch["labels"]
            lengths = ((labels != IGNORED) & (labels != config.pad_token_id)).sum(dim=1)
            return losses / lengths.clamp_min(1)
        return losses

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        raise no_margin(self.name)

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise no_text("a speech recogniser", "input_values or input_features", number)

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model says what it lacks
