"""Speech to text by an encoder and a decoder."""

from typing import Any

from .base import Feature
from .classification import no_text
from .decoding import EncoderDecoder
from .text import TextReader


class SpeechSeq2Seq(EncoderDecoder):
    """Cross-entropy of the transcript's tokens given a recording, summed over the labels that are not -100."""

    name = "speech-seq2seq"
    auto_class = "AutoModelForSpeechSeq2Seq"
    query_example = '{"input_features": features, "labels": tokens}'
    decoded = ("labels",)
    table = "SPEECH_SEQ_2_SEQ"

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise no_text("a speech recogniser", "input_features", number)

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model says what it lacks
