"""Images and sounds in a query to model inputs, by an image processor, a feature extractor or a processor with them.

Nothing is opened but what the user passed: a path in a query is the user's, and no index has a say in it.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import QueryError
from .base import Feature


IMAGE = ("image", "img")
"""Columns of images, as datasets call them."""
AUDIO = ("audio",)

_LONGEST_REASON = 300  # characters of somebody else's error that are shown


def is_image(value: Any) -> bool:
    """Whether this is an image by itself: one of PIL's, or the path of a file."""
    return type(value).__module__.startswith("PIL.") or isinstance(value, Path)


class MediaReader:
    """Makes model inputs of images and sounds.

    Args:
        processing_class: an image processor, a feature extractor, a processor with one of them, or `None`.
    """

    def __init__(self, processing_class: Any):
        self._images = _part(processing_class, "image_processor", "ImageProcessingMixin")
        self._sounds = _part(processing_class, "feature_extractor", "FeatureExtractionMixin")

    def image(self, value: Any, number: int) -> Feature:
        """`pixel_values` and what else the image processor makes of an image: PIL's, the path of a file, its bytes, a
        dict {"bytes", "path"} as datasets hold it, or an array (H, W, C).

        Raises:
            [`~lorif_hf.errors.QueryError`]: there is no image processor, or the image cannot be read.
        """
        if self._images is None:
            raise QueryError(
                f"Query {number} holds an image, but there is no image processor: pass processing_class= with the one "
                "of the training (index.processing_class, if you trust who made the index), or a dict with what it "
                "makes (pixel_values)."
            )
        picture = _in_colours(_opened(value, number), getattr(self._images, "image_mean", None))
        return _first(_processed(self._images, number, "image", images=picture, return_tensors="pt"))

    def sound(self, value: Any, number: int) -> Feature:
        """`input_features` or `input_values` of a sound {"array": (samples,), "sampling_rate": Hz}, as of datasets.

        Raises:
            [`~lorif_hf.errors.QueryError`]: there is no feature extractor, the sound cannot be read, or its sampling
                rate is another than the extractor's.
        """
        if self._sounds is None:
            raise QueryError(
                f"Query {number} holds audio, but there is no feature extractor: pass processing_class= with the one "
                "of the training (index.processing_class, if you trust who made the index), or a dict with what it "
                "makes (input_features, input_values)."
            )
        samples, rate = _heard(value, number)
        expected = getattr(self._sounds, "sampling_rate", rate)
        if rate != expected:
            raise QueryError(
                f"Query {number} has audio of {rate} Hz, the feature extractor expects {expected} Hz: resample it "
                f"(of a Dataset: cast_column('audio', Audio(sampling_rate={expected})))."
            )
        made = _processed(self._sounds, number, "audio", samples, sampling_rate=rate, return_tensors="pt")
        return _first(made)


def _part(processing_class: Any, name: str, base: str) -> Any:
    """A processor's part of this name, or the class itself where it is one."""
    part = getattr(processing_class, name, None)
    if part is not None:
        return part
    return processing_class if base in (kind.__name__ for kind in type(processing_class).__mro__) else None


def _opened(value: Any, number: int) -> Any:
    """An image in memory."""
    from PIL import Image

    if isinstance(value, Mapping) and (value.get("bytes") is not None or value.get("path") is not None):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    try:
        if isinstance(value, (str, os.PathLike)):
            with Image.open(os.fspath(value)) as file:
                return file.copy()
        if isinstance(value, (bytes, bytearray)):
            value = Image.open(io.BytesIO(value))
        if isinstance(value, Image.Image):
            value.load()
            return value
    except Exception as error:
        raise _unreadable("image", number, error) from error
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim in (2, 3):
        return value
    raise QueryError(
        f"Query {number} has an image of type {type(value).__name__}: expected one of PIL's, the path of a file, its "
        "bytes, a dict {'bytes', 'path'}, or an array (H, W, C)."
    )


def _in_colours(image: Any, mean: Any) -> Any:
    """Three channels for a processor that is made for three: grey pictures and palettes are among those of colour."""
    grey = isinstance(mean, (list, tuple)) and len(mean) == 1
    if not hasattr(image, "convert") or image.mode == "RGB" or grey:
        return image
    return image.convert("RGB")


def _heard(value: Any, number: int) -> tuple[np.ndarray, int]:
    """Samples (T,) and their rate in Hz."""
    if not isinstance(value, Mapping) and hasattr(value, "get_all_samples"):  # datasets' decoder
        try:
            samples = value.get_all_samples()
            value = {"array": samples.data.mean(dim=0).numpy(), "sampling_rate": samples.sample_rate}
        except Exception as error:
            raise _unreadable("audio", number, error) from error
    if not isinstance(value, Mapping) or value.get("array") is None or value.get("sampling_rate") is None:
        given = f"a dict with {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise QueryError(
            f"Query {number} has audio that is {given}: expected {{'array': samples, 'sampling_rate': Hz}}, as a "
            "Dataset's Audio column gives it once it is decoded."
        )
    try:
        samples = np.asarray(value["array"], dtype=np.float32)
        rate = int(value["sampling_rate"])
    except (TypeError, ValueError, OverflowError) as error:
        raise _unreadable("audio", number, error) from error
    if samples.ndim != 1 or not samples.size:
        raise QueryError(
            f"Query {number} has audio of shape {samples.shape}: expected samples of one channel, in one row."
        )
    return samples, rate


def _processed(processor: Any, number: int, what: str, *arguments: Any, **options: Any) -> Mapping[str, Any]:
    try:
        made: Mapping[str, Any] = processor(*arguments, **options)
        return made
    except Exception as error:
        raise _unreadable(what, number, error) from error


def _unreadable(what: str, number: int, error: Exception) -> QueryError:
    reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    return QueryError(f"The {what} of query {number} cannot be read ({reason}): mend it, or leave the query out.")


def _first(batch: Mapping[str, Any]) -> Feature:
    """The only row of what a processor made."""
    return {key: value[0] for key, value in batch.items()}
