"""Classifiers of recordings: an index against autograd, row by row."""

import pytest
import torch
from every_task import assert_recorded, index_of, wav2vec2
from transformers import Wav2Vec2ForSequenceClassification

from lorif_hf.errors import QueryError
from lorif_hf.tasks import task_of


def test_an_index_of_recordings(tmp_path):
    model = wav2vec2(Wav2Vec2ForSequenceClassification, num_labels=3)
    rows = [{"input_values": torch.randn(160).tolist(), "labels": i % 3} for i in range(6)]
    assert_recorded(index_of(model, rows, tmp_path), model, rows, "audio-classification")
    with pytest.raises(QueryError, match="Query 0 is text, and an audio classifier takes none"):
        task_of(model).query_pair(None, "a bird", "bird", 0)
