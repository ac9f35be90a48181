"""Speech recognition by CTC: an index against autograd, row by row."""

import logging

import pytest
import torch
from every_task import assert_recorded, index_of, padded_sounds, sounds, wav2vec2

from lorif_hf.errors import DatasetError, QueryError
from lorif_hf.tasks import task_of


def loss(model, row):
    return model(**padded_sounds([row])).loss


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_an_index_of_recordings(tmp_path, reduction):
    """In evaluation mode: SpecAugment and dropped layers would change a row from one pass to the next."""
    model, rows = wav2vec2(ctc_loss_reduction=reduction, mask_time_prob=0.5, layerdrop=0.5).train(), sounds()
    index = index_of(model, rows, tmp_path, data_collator=padded_sounds)
    assert model.training and model.config.ctc_loss_reduction == reduction
    assert_recorded(index, model.eval(), rows, "ctc", loss)
    assert [example["num_tokens"] for example in index.examples([0, 1])] == [2, 3]


def test_a_norm_over_time_sees_padding_so_rows_go_alone(tmp_path, caplog):
    model, rows = wav2vec2(feat_extract_norm="group"), sounds()
    with caplog.at_level(logging.WARNING):
        index = index_of(model, rows, tmp_path, data_collator=padded_sounds)
    assert "Objective 'ctc' is not what was trained" in caplog.text
    assert_recorded(index, model, rows, "model", loss, together=False)


def test_the_loss_is_that_of_the_model_and_its_config_is_left_alone():
    model, batch = wav2vec2().eval(), padded_sounds(sounds(3))
    task = task_of(model)
    model.config.ctc_loss_reduction = "sum"
    torch.testing.assert_close(task.losses(model, batch).sum(), model(**batch).loss)
    model.config.ctc_loss_reduction = "mean"
    torch.testing.assert_close(task.losses(model, batch).mean(), model(**batch).loss)
    with pytest.raises(ValueError, match="Label values must be <= vocab_size"):
        task.losses(model, batch | {"labels": torch.full((3, 1), 12)})
    assert model.config.ctc_loss_reduction == "mean" and task.targets(batch).tolist() == [2, 3, 4]


def test_a_label_beyond_the_vocabulary_names_its_row(tmp_path):
    rows = sounds()
    rows[3]["labels"][1] = 12
    with pytest.raises(DatasetError, match=r"cannot take row 3 \(12 in column 'labels'\)"):
        index_of(wav2vec2(), rows, tmp_path, data_collator=padded_sounds)


def test_text_is_no_recording():
    with pytest.raises(QueryError, match="Query 0 is text, and a speech recogniser takes none"):
        task_of(wav2vec2()).query_pair(None, "hello", "there", 0)
