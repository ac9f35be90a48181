"""The stage of `python -m benchmarks.gpu` with dattri-llm and bergson beside ours, on LoRA adapters.

Every system gets the same adapters on the same base, rows and queries, and gives the score of each pair: seconds are
those from loading the model to the last score. Their plain inner product of gradients must rank as ours does. Where
`python -m benchmarks.gpu --install` was not run before, they are installed within the stage's time.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lorif_hf import InfluenceConfig, InfluenceIndex

from .gpu_stages import LORA_RANK, Rows, Setting, to_the_end
from .lora_others import run_system
from .lora_runners import adapters
from .references import spearman


SYSTEMS = ("dattri-llm", "bergson")
SHAPE = (768, 12, 2048, 256, 256, 16)  # width, layers, vocabulary, tokens, rows, queries
TINY_SHAPE = (32, 2, 64, 16, 24, 4)
OURS = {
    "lorif-hf, dot": lambda: InfluenceConfig.grad_dot(projection_factor=1, dtype="float32"),
    "lorif-hf, default": InfluenceConfig,
}


def others(rows: Rows, setting: Setting) -> None:
    """Ours first, then theirs, each beside our inner product."""
    with tempfile.TemporaryDirectory() as name:
        bed = Path(name)
        make_bed(bed, *(TINY_SHAPE if setting.tiny else SHAPE))
        dot: np.ndarray | None = None
        for system, config in OURS.items():
            with to_the_end(rows, "others", {"system": system}):
                row, scores = _ours(bed, config(), setting.device)
                dot = scores if dot is None else dot
                rows.add("others", {"system": system, **row, "spearman_with_our_dot": spearman(scores, dot)})
        for system in SYSTEMS:
            with to_the_end(rows, "others", {"system": f"{system}, dot"}):
                made, theirs = run_system(system, "dot", bed, setting.venvs)
                if theirs is not None and dot is not None:
                    made["spearman_with_our_dot"] = spearman(theirs, dot)
                rows.add("others", {"system": f"{system}, dot", **made})


def make_bed(bed: Path, width: int, layers: int, vocabulary: int, length: int, count: int, queries: int) -> None:
    """A base, adapters on it, rows and queries, all random, where the runners look for them."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32 * length,  # bergson takes no batch of more tokens than this
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(bed / "base")
    base = LlamaForCausalLM.from_pretrained(bed / "base")  # the adapter then says where its base is
    lora = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(bed / "adapter")
    words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0").save_pretrained(bed / "adapter")
    for name, rows in (("train", count), ("queries", queries)):
        np.save(bed / f"{name}.npy", torch.randint(1, vocabulary, (rows, length)).numpy())


def _ours(bed: Path, config: InfluenceConfig, device: torch.device) -> tuple[dict[str, Any], np.ndarray]:
    start = time.perf_counter()
    model = adapters(bed).to(device)
    train, queries = (
        Dataset.from_dict({"input_ids": ids, "labels": ids})
        for ids in (np.load(bed / f"{name}.npy").tolist() for name in ("train", "queries"))
    )
    index = InfluenceIndex.build(model, train, bed / f"index-{config.codec_name}", config=config, batch_size=20)
    scores = index.scores(model, queries, batch_size=20)
    return {"seconds": time.perf_counter() - start, "bytes": index.bytes_per_example}, scores.numpy()
