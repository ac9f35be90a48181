"""Classifiers of recordings."""

from typing import Any, NoReturn

from .classification import Classifier, no_text
from .text import TextReader


class AudioClassification(Classifier):
    """The class of a recording; a query is a dict of the model's inputs."""

    name = "audio-classification"
    auto_class = "AutoModelForAudioClassification"
    query_example = '{"input_values": samples}'
    decoded = ()
    table = "AUDIO_CLASSIFICATION"

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> NoReturn:
        raise no_text("an audio classifier", "input_values or input_features", number)
