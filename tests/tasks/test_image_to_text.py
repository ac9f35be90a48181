"""Images to text: an index against autograd, row by row."""

import pytest
import torch
from every_task import LAYERS, assert_recorded, images, index_of, token_sum, translations
from kinds import VOCABULARY
from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from lorif_hf.errors import QueryError
from lorif_hf.tasks import task_of


def captioner():
    torch.manual_seed(0)
    sees = ViTConfig(**LAYERS, image_size=16, patch_size=8, initializer_range=0.2)
    says = BertConfig(vocab_size=VOCABULARY, **LAYERS, initializer_range=0.2)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, says)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    return VisionEncoderDecoderModel(config)


def test_an_index_of_captions(tmp_path):
    model = captioner()
    rows = [image | {"labels": row["labels"]} for image, row in zip(images(), translations(), strict=True)]
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "image-to-text", token_sum)
    with pytest.raises(QueryError, match="Query 0 is text, and such a model takes none"):
        task_of(model).query_pair(None, "a cat", "b", 0)
