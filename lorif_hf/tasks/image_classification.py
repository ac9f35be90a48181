"""Classifiers of images."""

from typing import Any, NoReturn

from .classification import Classifier, no_text
from .text import TextReader


class ImageClassification(Classifier):
    """The class of an image; a query is a dict of the model's inputs."""

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    query_example = '{"pixel_values": pixels}'
    decoded = ()
    table = "IMAGE_CLASSIFICATION"

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> NoReturn:
        raise no_text("an image classifier", "pixel_values", number)
