"""What a model takes: rows and batches of it, their padding, their precision; and what it does not take."""

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BertConfig,
    BertForMultipleChoice,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from lorif_hf.errors import QueryError
from lorif_hf.tasks import Custom, task_of
from lorif_hf.tasks.model_inputs import ModelInputs


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
PIXELS = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()


def inputs_of(model, objective="model"):
    return ModelInputs(model, task_of(model, objective))


@pytest.fixture(scope="module")
def vit():
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=4, patch_size=2, num_labels=3))


@pytest.fixture(scope="module")
def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def test_a_picture_is_a_row_and_pictures_are_a_batch(vit):
    inputs = inputs_of(vit)
    (row,) = inputs.rows({"pixel_values": PIXELS[0], "labels": 1}, 0)
    assert torch.equal(row["pixel_values"], PIXELS[0]) and row["labels"] == 1
    for labels in ([0, 2], torch.tensor([0, 2])):
        rows = inputs.rows({"pixel_values": PIXELS, "labels": labels}, 0)
        assert [int(row["labels"]) for row in rows] == [0, 2]
        assert all(torch.equal(row["pixel_values"], PIXELS[i]) for i, row in enumerate(rows))
    (one,) = inputs.rows({"pixel_values": PIXELS[:1], "labels": [2]}, 0)
    assert one["pixel_values"].shape == (3, 4, 4) and one["labels"] == 2
    with pytest.raises(QueryError, match="Query 3 is a batch of 2 rows, but its 'labels' has not one entry for each"):
        inputs.rows({"pixel_values": PIXELS, "labels": 1}, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numbers_of_any_kind_come_in_the_models_precision(vit, dtype):
    values = PIXELS[0].tolist(), PIXELS[0].double().numpy(), PIXELS[0].half()
    model = ViTForImageClassification(vit.config).to(dtype)
    for value in values:
        (row,) = inputs_of(model).rows({"pixel_values": value, "labels": 0.5}, 0)
        assert row["pixel_values"].dtype == dtype and row["labels"] == 0.5
        assert torch.equal(row["pixel_values"], PIXELS[0].to(dtype))
    ints = np.zeros((3, 4, 4), dtype=np.uint8)
    assert inputs_of(model).rows({"pixel_values": ints}, 0)[0]["pixel_values"] is ints


def test_the_same_name_has_other_axes_in_other_models():
    model = ASTForAudioClassification(ASTConfig(**SIZES, max_length=16, num_mel_bins=8, patch_size=4))
    inputs = inputs_of(model)
    assert len(inputs.rows({"input_values": torch.ones(16, 8), "labels": 1}, 0)) == 1
    assert len(inputs.rows({"input_values": torch.ones(2, 16, 8), "labels": [1, 0]}, 0)) == 2


def test_choices_are_rows_of_two_axes():
    model = BertForMultipleChoice(BertConfig(vocab_size=20, **SIZES))
    inputs = inputs_of(model)
    assert inputs.token_axes == 2
    ids = torch.arange(12).view(2, 2, 3)
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]])
    assert len(inputs.rows({"input_ids": ids[0], "labels": 1}, 0)) == 1
    rows = inputs.rows({"input_ids": ids, "attention_mask": mask, "labels": [1, 0]}, 0)
    assert [row["input_ids"].shape for row in rows] == [(2, 3)] * 2
    assert torch.equal(rows[1]["attention_mask"], mask[1])


def test_a_target_keeps_its_length_whatever_the_mask_of_the_source(t5):
    batch = {
        "input_ids": [[5, 6, 1], [7, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[8, 9, 1], [3, 4, 1]],
    }
    rows = inputs_of(t5).rows(batch, 0)
    assert [torch.as_tensor(row["input_ids"]).tolist() for row in rows] == [[5, 6, 1], [7, 1]]
    assert [row["labels"] for row in rows] == [[8, 9, 1], [3, 4, 1]]


def test_labels_that_are_as_many_as_tokens_by_chance_stay_whole(build):
    model = build("bert-classifier", problem_type="multi_label_classification")
    batch = {"input_ids": [[5, 6, 0]], "attention_mask": [[1, 1, 0]], "labels": [[1.0, 0.0, 1.0]]}
    (row,) = inputs_of(model, None).rows(batch, 0)
    assert len(row["input_ids"]) == 2 and row["labels"] == [1.0, 0.0, 1.0]
    (row,) = inputs_of(model, None).rows({**batch, "labels": [[1, 2, -100]]}, 0)
    assert torch.as_tensor(row["labels"]).tolist() == [1, 2]


@pytest.mark.parametrize("labels", [None, [3, 4]])
def test_inputs_of_unknown_axes_are_a_batch_where_they_have_as_many_labels(labels):
    class Own(torch.nn.Module):
        def forward(self, signal):
            return signal

    inputs = ModelInputs(Own(), Custom(lambda model, batch: batch["signal"]))
    item = {"signal": [[0.5, 1.0], [2.0, 3.0]]} | ({} if labels is None else {"labels": labels})
    assert inputs.may_be_in(item) and not inputs.are_in(item)
    assert len(inputs.rows(item, 0)) == (1 if labels is None else 2)


def test_a_query_of_another_task_is_named(vit, t5, build):
    with pytest.raises(QueryError) as caught:
        inputs_of(vit).check({"input_ids": [1, 2], "labels": 1}, 3)
    assert str(caught.value) == (
        "Query 3 holds 'input_ids', but a ViTForImageClassification needs 'pixel_values': it is a query of another "
        "task than the index's. Pass what the model was trained on, or its images or audio with processing_class=."
    )
    with pytest.raises(QueryError, match=r"Query 1 holds nothing, but a T5ForConditionalGeneration needs 'input_ids'"):
        inputs_of(t5).check({"labels": [1]}, 1)
    with pytest.raises(QueryError, match="Query 2 is text, but a ViTForImageClassification takes 'pixel_values'"):
        inputs_of(vit).check_text(2)
    inputs_of(t5).check_text(2)
    inputs_of(build("llama"), None).check({"inputs_embeds": torch.ones(2, 16)}, 0)
    ModelInputs(vit, Custom(lambda model, batch: None)).check({"anything": 1}, 0)
