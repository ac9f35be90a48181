"""Speech to text by an encoder and a decoder."""

from typing import Any

from torch import Tensor, nn

from .base import Feature, Task
from .classification import no_text
from .cross_entropy import IGNORED, cross_entropy
from .decoding import decoder_logits
from .model_classes import classes_of
from .text import TextReader


class SpeechSeq2Seq(Task):
    """Cross-entropy of the transcript's tokens given a recording, summed over the labels that are not -100."""

    name = "speech-seq2seq"
    auto_class = "AutoModelForSpeechSeq2Seq"
    needs_labels = True
    makes_labels = False
    labelled_queries = False
    query_example = '{"input_features": features, "labels": tokens}'
    label_kind = "tokens"
    decoded = ("labels",)

    def accepts(self, model: nn.Module) -> bool:
        encodes: Any = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return bool(encodes) and type(model).__name__ in classes_of("SPEECH_SEQ_2_SEQ")

    def losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        logits, labels = self.predictions(model, batch)
        return cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape).sum(dim=1)

    def targets(self, batch: dict[str, Any]) -> Tensor:
        return (batch["labels"] != IGNORED).sum(dim=1)

    def predictions(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return decoder_logits(model, batch), batch["labels"]

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise no_text("a speech recogniser", "input_features", number)

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model says what it lacks
