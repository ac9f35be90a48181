"""Small models and rows of every kind, and an index of them."""

import torch
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM
from truth import GRADIENTS, alone

from lorif_hf import InfluenceIndex


VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, initializer_range=0.2, **options))


def bert(cls, **options):
    torch.manual_seed(0)
    return cls(BertConfig(**SIZES, initializer_range=0.2, **options))


def rows_of(lengths=(6, 3, 7, 2, 8, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()} for length in lengths]


def built(model, rows, tmp_path, config=GRADIENTS, **options):
    return InfluenceIndex.build(model, rows, tmp_path / "index", config=config, **options)


def mean_times_tokens(model, row):
    """The own loss of who does not shift his labels."""
    batch = alone(row)
    return model(**batch).loss * (batch["labels"] != -100).sum()
