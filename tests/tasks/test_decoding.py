"""The logits of a decoder whose inputs the model makes of the labels."""

import pytest
import torch
from every_task import bart, t5

from lorif_hf.tasks.decoding import decoder_logits


@pytest.mark.parametrize("make", [t5, bart])
def test_the_decoder_sees_the_labels_shifted_by_one(make):
    model = make().eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[8, 9, -100]])}
    shifted = torch.tensor([[model.config.decoder_start_token_id, 8, 9]])
    expected = model(input_ids=batch["input_ids"], decoder_input_ids=shifted).logits
    torch.testing.assert_close(decoder_logits(model, batch), expected)
    own = torch.tensor([[3, 3, 3]])
    given = decoder_logits(model, batch | {"decoder_input_ids": own})
    torch.testing.assert_close(given, model(input_ids=batch["input_ids"], decoder_input_ids=own).logits)
    assert decoder_logits(make().bfloat16(), batch).dtype == torch.float32
