"""Are the times of `lorif-hf estimate` right? Small builds of wide layers, phase by phase, beside what is predicted.

    python -m benchmarks.estimate          # three shapes, the default config; some minutes on two cores
    python -m benchmarks.estimate --tiny   # whether it runs, not how right it is

Seconds are those of this process's own threads (CPU time over the threads), so that others on the machine matter less;
the speed of matrix products is measured by the same clock, before and after each build.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from datasets import Dataset
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorif_hf import InfluenceConfig
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.plan import plan_build
from lorif_hf.curvature.kronecker import MomentsPass
from lorif_hf.estimating.costs import estimates
from lorif_hf.estimating.speed import measured_speed

from .machine import load, machine
from .quality import RESULTS


ROWS, LENGTH, BATCH = 16, 128, 8


def gpt2(size: int) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=768 // size, n_layer=2, n_head=12 // size, vocab_size=8192))


def llama(size: int) -> nn.Module:
    wide = 2048 // size
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=wide,
            intermediate_size=11 * wide // 4,
            num_hidden_layers=1,
            num_attention_heads=16 // size,
            vocab_size=8192,
        )
    )


def lora(size: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(size), LoraConfig(r=16 // size, target_modules="all-linear", task_type="CAUSAL_LM"))


SHAPES = {"GPT-2, 768 wide, 2 layers": gpt2, "a Llama block, 2,048 wide": llama, "the same, LoRA r = 16": lora}


def processor() -> float:
    """Seconds of this process, as if its threads were always busy."""
    return time.process_time() / torch.get_num_threads()


def timed(what: Callable[[], Any]) -> float:
    start = processor()
    what()
    return processor() - start


def build(model: nn.Module, folder: Path, config: InfluenceConfig, rows: int) -> dict[str, float]:
    """Seconds of the phases."""
    drawn = torch.randint(1, 8192, (rows, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    builder = plan_build(model, Dataset.from_dict({"input_ids": drawn}), folder, config, BuildOptions(BATCH))
    builder.prepare()
    roots, tensors = 0.0, MomentsPass.tensors

    def counted(*args: Any) -> Any:
        nonlocal roots
        start = processor()
        made = tensors(*args)
        roots += processor() - start
        return made

    with patch.object(MomentsPass, "tensors", counted):
        gathering = timed(builder.gather)
    return {
        "first pass": gathering - roots,
        "roots": roots,
        "recording": timed(lambda: builder.record(lambda shard: None)),
    }


def compare(name: str, size: int, rows: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model, config = SHAPES[name](size).eval(), InfluenceConfig(factor_rank=3 if size == 1 else 1)
    before = measured_speed(clock=processor)
    with tempfile.TemporaryDirectory() as folder:
        taken = build(model, Path(folder) / "index", config, rows)
    speed = (before + measured_speed(clock=processor)) / 2
    seconds = estimates(model, rows, LENGTH, {"default": config}, speed)["default"].seconds
    predicted = {"first pass": seconds.first_pass, "roots": seconds.roots, "recording": seconds.recording}
    predicted["all"], taken["all"] = sum(predicted.values()), sum(taken.values())
    return [
        {"shape": name, "phase": phase, "predicted": predicted[phase], "measured": taken[phase], "speed": speed}
        for phase in predicted
    ]


def main(
    tiny: Annotated[bool, typer.Option("--tiny", help="Small layers; writes nothing.")] = False,
    results: Annotated[Path, typer.Option(help="The JSON file.")] = RESULTS / "estimate.json",
) -> None:
    """Build, compare and print."""
    disable_progress_bars("lorif_hf")
    size, rows = (8, 4) if tiny else (1, ROWS)
    lines = [line for name in SHAPES for line in compare(name, size, rows)]
    table = Table("shape", "phase", "predicted, s", "measured, s", "measured / predicted", title=machine())
    for line in lines:
        ratio = line["measured"] / line["predicted"]
        table.add_row(
            line["shape"], line["phase"], f"{line['predicted']:.3g}", f"{line['measured']:.3g}", f"{ratio:.2f}"
        )
    Console(width=119).print(table)
    if not tiny:
        results.write_text(json.dumps({"machine": machine(), "load": load(), "lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
