"""Classifiers of videos."""

from typing import Any, NoReturn

from .classification import Classifier, no_text
from .text import TextReader


class VideoClassification(Classifier):
    """The class of a video; a query is a dict of the model's inputs."""

    name = "video-classification"
    auto_class = "AutoModelForVideoClassification"
    query_example = '{"pixel_values": frames}'
    decoded = ()
    table = "VIDEO_CLASSIFICATION"

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> NoReturn:
        raise no_text("a video classifier", "pixel_values", number)
