"""The bed: a small Llama and rows of WikiText-2, written into a folder that every runner reads.

All tracked layers are square (hidden_size = intermediate_size, as many key-value heads as heads), since some systems
have one projection size for all layers: so an equal f is an equal size in each. They have no bias, so nobody has one
more column than the others. Rows are of equal length, so nobody pads.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from ..wikitext import BLOCK, VOCABULARY, TestBed
from .measuring import Bed, summed_loss


STEPS, STEP_ROWS = 200, 32  # of the brief training


def prepare(
    folder: Path, *, examples: int, queries: int, hidden: int, layers: int, factor: int, batch_size: int
) -> Bed:
    """Make the bed, or find it made with the same numbers."""
    settings = {
        "examples": examples,
        "queries": queries,
        "block": BLOCK,
        "vocabulary": VOCABULARY,
        "hidden": hidden,
        "layers": layers,
        "projection_factor": factor,
        "rank": hidden // factor,
        "batch_size": batch_size,
    }
    where = folder / f"bed-n{examples}-q{queries}-h{hidden}-l{layers}-f{factor}-b{batch_size}"
    bed = Bed(where)
    if (where / "bed.json").exists() and bed.settings == settings:
        return bed
    where.mkdir(parents=True, exist_ok=True)
    texts = TestBed(folder / "wikitext")
    blocks = [block for name in ("test.txt", "valid.txt") for block in texts.blocks(name)]
    random.Random(0).shuffle(blocks)
    if len(blocks) < examples + queries:
        raise SystemExit(f"WikiText-2's test and validation files make {len(blocks)} blocks: --examples is too high.")
    rows = np.array(blocks[: examples + queries], dtype=np.int64)
    np.save(where / "train.npy", rows[:examples])
    np.save(where / "queries.npy", rows[examples:])
    _trained(torch.from_numpy(rows[:examples]), hidden, layers).save_pretrained(where / "model")
    texts.tokenizer.save_pretrained(where / "model")
    (where / "bed.json").write_text(json.dumps(settings, indent=2) + "\n")
    return bed


def _trained(rows: torch.Tensor, hidden: int, layers: int) -> LlamaForCausalLM:
    """The model after a few steps on the training rows: cost does not depend on it, gradients look like real ones."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,  # bergson takes no batch of more tokens than this
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        chosen = rows[torch.randint(len(rows), (STEP_ROWS,))]
        loss = summed_loss(model, chosen) / chosen[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
