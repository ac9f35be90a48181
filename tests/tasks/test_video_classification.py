"""Video classifiers: an index against autograd, row by row."""

import pytest
import torch
from every_task import LAYERS, assert_recorded, index_of
from transformers import TimesformerConfig, TimesformerForVideoClassification

from lorif_hf.errors import QueryError
from lorif_hf.tasks import VideoClassification, task_of


def test_an_index_of_videos(tmp_path):
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_frames": 2, "attention_type": "joint_space_time"}
    config = TimesformerConfig(**LAYERS, **sizes, num_labels=3, initializer_range=0.2)
    model = TimesformerForVideoClassification(config)
    rows = [{"pixel_values": torch.randn(2, 3, 8, 8).tolist(), "labels": i % 3} for i in range(6)]
    assert isinstance(task_of(model), VideoClassification)
    assert_recorded(index_of(model, rows, tmp_path), model, rows, "video-classification")
    with pytest.raises(QueryError, match="Query 0 is text, and a video classifier takes none"):
        task_of(model).query_pair(None, "a cat", "cat", 0)
