"""dattri-llm and bergson on LoRA adapters, one script each, run with the Python of that system's own environment.

    python -m benchmarks.lora_runners.NAME BED OUT VARIANT

Reads `base/`, `adapter/`, `train.npy` and `queries.npy` (token ids of full rows) from BED, and writes `scores.npy`
(Q, N), positive a proponent, and `facts.json` into OUT. Imports only what the environment has.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def adapters(bed: Path) -> Any:
    """The adapters on their base, float32, in eval mode, on a GPU where there is one; only they require a gradient."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(bed / "base", dtype=torch.float32)
    return PeftModel.from_pretrained(base, bed / "adapter", is_trainable=True).eval().to(DEVICE)


def rows(bed: Path, name: str) -> torch.Tensor:
    """`"train"` (N, block) or `"queries"` (Q, block); the labels are the ids."""
    return torch.from_numpy(np.load(bed / f"{name}.npy"))


def summed_loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the batch and its tokens, in nats."""
    batch = batch.to(DEVICE)
    logits = model(input_ids=batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")


def run(score: Callable[[Path, Path, str], tuple[Any, dict[str, Any]]]) -> None:
    """A runner's command line. `score(bed, out, variant)` gives the scores (Q, N) and what else is to be told, its
    seconds too where not all that it does is for the scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variant")
    given = parser.parse_args()
    torch.manual_seed(0)
    start = time.perf_counter()
    scores, facts = score(given.bed, given.out, given.variant)
    facts.setdefault("seconds", time.perf_counter() - start)
    np.save(given.out / "scores.npy", torch.as_tensor(scores).detach().float().cpu().numpy())
    (given.out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
