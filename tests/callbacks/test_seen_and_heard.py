"""Images and recordings through the callback: what the index holds, and what cannot be read."""

import io

import pytest
import torch
from datasets import Dataset, Image
from every_task import errors, spectrograms, token_sum, vit, whisper
from PIL import Image as Picture
from trainings import ARGUMENTS, errors_of, trained
from transformers import Trainer, TrainingArguments, ViTImageProcessorPil

from lorif_hf import InfluenceIndex
from lorif_hf.errors import DatasetError
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.tasks import ImageClassification


PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


def pictures(count=8):
    """Encoded images, as a folder of files has them."""
    rows = []
    for number in range(count):
        file = io.BytesIO()
        noise = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(number))
        Picture.fromarray(noise.to(torch.uint8).numpy()).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"cat-{number}.png"}, "label": number % 3})
    return rows


def dataset_of(rows, flips=False):
    def transform(batch):
        images = [image.convert("RGB") for image in batch["image"]]
        pixels = PROCESSOR(images, return_tensors="pt")["pixel_values"]
        if flips:
            pixels = torch.stack([image.flip(-1) if torch.rand(()) < 0.5 else image for image in pixels])
        return {"pixel_values": list(pixels), "labels": batch["label"]}

    return Dataset.from_list(rows).cast_column("image", Image()).with_transform(transform)


def training(path, model, dataset, **options):
    arguments = TrainingArguments(str(path / "out"), remove_unused_columns=False, **ARGUMENTS)
    return Trainer(model=model, args=arguments, train_dataset=dataset, **options)


def test_images_through_the_processor(tmp_path):
    trainer, index = trained(tmp_path, lambda path: training(path, vit(), dataset_of(pictures())))
    assert index.manifest.objective == "image-classification" and not index.manifest.alone and len(index) == 8
    assert float(errors_of(index, trainer).max()) < 1e-5
    scores = index.scores(trainer.model, dataset_of(pictures()))
    torch.testing.assert_close(scores.diagonal().double(), index.self_influence(), rtol=1e-4, atol=1e-6)


def test_images_that_are_turned_at_random_are_turned_once(tmp_path):
    rows = dataset_of(pictures(), flips=True)
    trainer, index = trained(tmp_path, lambda path: training(path, vit(), rows))
    assert index.manifest.objective == "image-classification" and not index.manifest.alone
    taken = TrainingRows(rows, trainer.model, ImageClassification(), data_collator=trainer.data_collator)
    assert taken.draws_random
    drawn = [{key: value[0].tolist() for key, value in taken.batch([row]).items()} for row in range(8)]
    assert max(errors(index, trainer.model, drawn)) < 1e-5
    again = InfluenceIndex.build(
        trainer.model, rows, tmp_path / "again", config=index.config, batch_size=3, data_collator=trainer.data_collator
    )
    torch.testing.assert_close(again.self_influence(), index.self_influence())


@pytest.mark.parametrize("broken", [b"no image", b""])
def test_an_image_that_cannot_be_read_is_named_before_the_first_step(tmp_path, broken):
    rows, steps = pictures(), []
    rows[5]["image"] = {"bytes": broken, "path": "cat-5.png"}

    def make(path):
        trainer = training(path, vit(), dataset_of(rows))
        trainer.training_step = lambda *_: steps.append(1)
        return trainer

    with pytest.raises(DatasetError, match=r"Row 5 of the dataset could not be read \(UnidentifiedImageError: cannot"):
        trained(tmp_path, make)
    assert not steps


def heard(features):
    labels = [torch.tensor(feature["labels"]) for feature in features]
    return {
        "input_features": torch.stack([torch.tensor(feature["input_features"]) for feature in features]),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def test_recordings_and_their_transcripts(tmp_path, tokenizer):
    rows = Dataset.from_list(spectrograms(8)).add_column("sentence", [f"sentence {i}" for i in range(8)])

    def make(path):
        return training(path, whisper(), rows, data_collator=heard, processing_class=tokenizer)

    trainer, index = trained(tmp_path, make)
    assert index.manifest.objective == "speech-seq2seq" and not index.manifest.alone
    assert max(errors(index, trainer.model, spectrograms(8), token_sum)) < 1e-5
    assert index.examples([3])[0]["text"] == "sentence 3"
    scores = index.scores(trainer.model, rows.select_columns(["input_features", "labels"]))
    torch.testing.assert_close(scores.diagonal().double(), index.self_influence(), rtol=1e-4, atol=1e-6)
