"""Tokens of each example, by hand."""

import torch

from lorif_hf.recording.token_counts import tokens_per_example
from lorif_hf.tasks import CTC, CausalLM, Seq2Seq, SpeechSeq2Seq


IDS, MASK = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [1, 0, 0]])
LABELS = torch.tensor([[5, 6, -100, -100], [5, 6, 7, -100]])


def test_padding_does_not_count():
    assert tokens_per_example({"input_ids": IDS, "attention_mask": MASK}, 2).tolist() == [3, 1]
    assert tokens_per_example({"input_ids": IDS}, 2).tolist() == [3, 3]
    assert tokens_per_example({"pixel_values": torch.zeros(2, 3, 4, 4)}, 2).tolist() == [0, 0]


def test_an_example_of_several_sequences_has_them_all():
    assert tokens_per_example({"input_ids": IDS, "attention_mask": MASK}, 1).tolist() == [4]
    choices = torch.stack([MASK, torch.ones_like(MASK)])
    assert tokens_per_example({"input_ids": choices, "attention_mask": choices}, 2).tolist() == [4, 6]
    pairs = {"attention_mask": torch.cat([MASK, torch.ones_like(MASK)])}  # chosen, then rejected
    assert tokens_per_example(pairs, 2).tolist() == [6, 4]


def test_labels_count_where_the_input_does_not_hold_them():
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    assert tokens_per_example(batch, 2, Seq2Seq()).tolist() == [5, 4]
    assert tokens_per_example(batch | {"labels": MASK}, 2, CausalLM()).tolist() == [3, 1]
    assert tokens_per_example(
        {"input_features": torch.zeros(2, 8, 20), "labels": LABELS}, 2, SpeechSeq2Seq()
    ).tolist() == [2, 3]
    sound = {"input_values": torch.zeros(2, 160), "attention_mask": torch.ones(2, 160, dtype=torch.long)}
    assert tokens_per_example(sound | {"labels": LABELS}, 2, CTC()).tolist() == [2, 3]
