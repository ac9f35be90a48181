"""Image classifiers: every index against autograd, row by row."""

import pytest
import torch
from every_task import assert_recorded, images, index_of, resnet, vit
from transformers import ConvNextConfig, ConvNextForImageClassification, SwinConfig, SwinForImageClassification

from lorif_hf.errors import DatasetError, QueryError
from lorif_hf.tasks import task_of


def convnext():
    torch.manual_seed(0)
    sizes = {
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_stages": 2,
        "patch_size": 2,
        "layer_scale_init_value": 1.0,
    }
    return ConvNextForImageClassification(ConvNextConfig(**sizes, num_labels=3))


def swin():
    torch.manual_seed(0)
    sizes = {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    }
    return SwinForImageClassification(SwinConfig(**sizes, num_labels=3))


@pytest.mark.parametrize("make, size", [(vit, 16), (resnet, 32), (convnext, 32)], ids=["ViT", "ResNet", "ConvNeXt"])
def test_an_index_of_images(tmp_path, make, size):
    model, rows = make().train(), images(size=size)
    index = index_of(model, rows, tmp_path)
    assert model.training
    assert_recorded(index, model, rows, "image-classification")
    assert index.examples([0])[0]["num_tokens"] == 0 and index.examples([0])[0]["text"] is None


def test_windows_of_an_image_are_recorded_a_row_at_a_time(tmp_path):
    model, rows = swin(), images()
    assert_recorded(index_of(model, rows, tmp_path), model, rows, "model", together=False)


@pytest.mark.parametrize("problem", ["several", "numbers"])
def test_other_problems(tmp_path, problem):
    rows = images()
    if problem == "several":
        model = vit()
        for row in rows:
            row["labels"] = [1.0, 0.0, float(row["labels"] > 0)]
    else:
        model = vit(problem_type="regression")
        for row in rows:
            row["labels"] = [0.5, float(row["labels"]), -1.0]
    assert_recorded(index_of(model, rows, tmp_path), model, rows, "image-classification")


def test_a_label_beyond_the_classes_names_its_row(tmp_path):
    rows = images()
    rows[4]["labels"] = 3
    with pytest.raises(DatasetError, match=r"cannot take row 4 \(3 in column 'labels'\): its classes are 0 to 2"):
        index_of(vit(), rows, tmp_path)


def test_images_of_different_sizes(tmp_path):
    rows = [*images(), *images(size=8)[:1]]
    with pytest.raises(DatasetError, match="Column 'pixel_values' has rows of different shapes"):
        index_of(vit(), rows, tmp_path)


def test_an_image_that_cannot_be_read_names_its_row(tmp_path):
    class Folder:
        def __len__(self):
            return 6

        def __getitem__(self, row):
            if row == 5:
                raise OSError("cannot identify image file 'cat.png'")
            return images()[row]

    with pytest.raises(DatasetError, match=r"Row 5 of the dataset could not be read \(OSError: cannot identify"):
        index_of(vit(), Folder(), tmp_path)


def test_text_is_no_image():
    with pytest.raises(QueryError, match="Query 0 is text, and an image classifier takes none"):
        task_of(vit()).query_pair(None, "a cat", "cat", 0)
