"""Images and sounds of a query through a processor, and the error that names the query where one cannot be read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from recordings import train_tokenizer
from transformers import ViTImageProcessorPil, WhisperFeatureExtractor, WhisperProcessor

from lorif_hf.errors import QueryError
from lorif_hf.tasks.query_media import MediaReader, is_image


PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})
EXTRACTOR = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
SAMPLES = np.sin(np.arange(4000) / 7).astype("float32")


def picture(mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def made(image):
    return PROCESSOR(images=image, return_tensors="pt")["pixel_values"][0]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "picture.png"
    picture().save(path)
    return path


def test_an_image_in_every_form_is_what_the_processor_makes_of_it(file):
    reader = MediaReader(PROCESSOR)
    data = file.read_bytes()
    forms = [
        picture(),
        file,
        str(file),
        data,
        bytearray(data),
        np.asarray(picture()),
        torch.tensor(np.array(picture())),
    ]
    forms += [{"bytes": data, "path": None}, {"bytes": None, "path": str(file)}, {"bytes": data, "path": "gone.png"}]
    for form in forms:
        feature = reader.image(form, 0)
        assert set(feature) == {"pixel_values"} and torch.equal(feature["pixel_values"], made(picture()))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_pictures_of_other_channels_are_among_those_of_three(mode):
    found = MediaReader(PROCESSOR).image(picture(mode), 0)["pixel_values"]
    assert torch.equal(found, made(picture(mode).convert("RGB")))


def test_a_processor_for_grey_pictures_gets_them_grey():
    grey = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    feature = MediaReader(grey).image(picture("L"), 0)
    assert torch.equal(feature["pixel_values"], grey(images=picture("L"), return_tensors="pt")["pixel_values"][0])


def truncated():
    stream = io.BytesIO()
    picture().save(stream, "png")
    return stream.getvalue()[:60]


@pytest.mark.parametrize(
    "image, reason",
    [
        ("gone.png", "The image of query 4 cannot be read (FileNotFoundError: "),
        (b"no picture", "The image of query 4 cannot be read (UnidentifiedImageError: "),
        (truncated(), "The image of query 4 cannot be read ("),
        ("https://example.org/a.png", "The image of query 4 cannot be read ("),
        (3, "Query 4 has an image of type int: expected one of PIL's, the path of a file, its bytes, a dict"),
        ({"bytes": None, "path": None}, "Query 4 has an image of type dict: expected one of PIL's"),
        (np.zeros(4), "Query 4 has an image of type ndarray: expected one of PIL's"),
    ],
    ids=["absent", "no picture", "truncated", "address", "number", "empty", "axes"],
)
def test_an_image_that_cannot_be_read_is_the_error_of_its_query(tmp_path, monkeypatch, image, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError) as caught:
        MediaReader(PROCESSOR).image(image, 4)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    "processing_class", [EXTRACTOR, WhisperProcessor(EXTRACTOR, train_tokenizer())], ids=["", "of"]
)
def test_a_sound_is_what_the_extractor_makes_of_it(processing_class):
    reader = MediaReader(processing_class)
    expected = EXTRACTOR(SAMPLES, sampling_rate=16000, return_tensors="pt")["input_features"][0]
    for samples in (SAMPLES, SAMPLES.tolist(), SAMPLES.astype("float64"), torch.tensor(SAMPLES)):
        feature = reader.sound({"array": samples, "sampling_rate": 16000, "path": "gone.wav"}, 0)
        assert torch.equal(feature["input_features"], expected)


class Decoder:
    """As datasets' decoder of sounds."""

    def __init__(self, error=None):
        self.error = error

    def get_all_samples(self):
        if self.error:
            raise self.error
        return type("Samples", (), {"data": torch.tensor(SAMPLES)[None], "sample_rate": 16000})()


def test_a_decoder_of_datasets_is_asked_for_its_samples():
    expected = EXTRACTOR(SAMPLES, sampling_rate=16000, return_tensors="pt")["input_features"][0]
    assert torch.equal(MediaReader(EXTRACTOR).sound(Decoder(), 0)["input_features"], expected)
    with pytest.raises(QueryError, match=r"The audio of query 2 cannot be read \(RuntimeError: damaged\)"):
        MediaReader(EXTRACTOR).sound(Decoder(RuntimeError("damaged")), 2)


@pytest.mark.parametrize(
    "sound, reason",
    [
        (
            {"array": SAMPLES, "sampling_rate": 8000},
            "Query 4 has audio of 8000 Hz, the feature extractor expects",
        ),
        (
            {"array": SAMPLES},
            "Query 4 has audio that is a dict with array: expected {'array': samples, 'sampling_rate",
        ),
        ("a.wav", "Query 4 has audio that is str: expected {'array': samples, 'sampling_rate': Hz}"),
        (
            {"array": SAMPLES[None], "sampling_rate": 16000},
            "Query 4 has audio of shape (1, 4000): expected samples of",
        ),
        ({"array": [], "sampling_rate": 16000}, "Query 4 has audio of shape (0,): expected samples of one channel"),
        ({"array": "x", "sampling_rate": 16000}, "The audio of query 4 cannot be read (ValueError: "),
    ],
    ids=["rate", "no rate", "path", "channels", "empty", "text"],
)
def test_a_sound_that_cannot_be_read_is_the_error_of_its_query(sound, reason):
    with pytest.raises(QueryError) as caught:
        MediaReader(EXTRACTOR).sound(sound, 4)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("processing_class", [None, train_tokenizer()], ids=["none", "tokenizer"])
def test_without_a_processor_the_way_out_is_named(processing_class):
    reader = MediaReader(processing_class)
    with pytest.raises(QueryError, match="Query 1 holds an image, but there is no image processor: pass"):
        reader.image(picture(), 1)
    with pytest.raises(QueryError, match="Query 1 holds audio, but there is no feature extractor: pass"):
        reader.sound({"array": SAMPLES, "sampling_rate": 16000}, 1)
    with pytest.raises(QueryError, match="no image processor"):
        MediaReader(EXTRACTOR).image(picture(), 1)


def test_which_values_are_images_by_themselves(file):
    assert is_image(picture()) and is_image(file)
    assert not is_image(str(file)) and not is_image({"image": 1}) and not is_image(torch.ones(3, 4, 4))
