"""Images to text by an encoder and a decoder: captions, documents read."""

from typing import Any

from .base import Feature
from .classification import no_text
from .decoding import EncoderDecoder
from .text import TextReader


class ImageToText(EncoderDecoder):
    """Cross-entropy of the text's tokens given an image, summed over the labels that are not -100."""

    name = "image-to-text"
    auto_class = "AutoModelForImageTextToText"
    query_example = '{"pixel_values": pixels, "labels": tokens}'
    decoded = ("labels",)
    table = "IMAGE_TEXT_TO_TEXT"

    def query_pair(self, reader: TextReader, text: str, target: Any, number: int) -> Feature:
        raise no_text("such a model", "pixel_values", number)

    def check_query(self, feature: Feature, number: int) -> None:
        pass  # the model says what it lacks
