"""Tiny models and datasets, made on the spot: nothing is downloaded."""

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf import InfluenceConfig


VOCABULARY = 50


def make_gpt2(seed: int = 0, width: int = 12) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=width,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def make_rows(count: int, seed: int = 0) -> Dataset:
    """Token rows of 3 to 15 tokens, with an id and a text for people."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 16, (count,), generator=generator).tolist()
    ids = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "example_id": [f"row-{i}" for i in range(count)],
            "text": [f"text {i}" for i in range(count)],
        }
    )


def plain_config(**changes) -> InfluenceConfig:
    """LoRIF's stored form and curvature with the whole query: what most tests of everything else are written for."""
    return InfluenceConfig.paper(**{"factorize_query": False, **changes})
