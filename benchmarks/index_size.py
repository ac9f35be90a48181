"""How big an index of GPT-2 124M gets: the README's table. Builds the model on the meta device, so nothing is loaded.

python -m benchmarks.index_size
"""

import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf.cli import estimate_table


def main() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    Console().print(estimate_table(model, "GPT-2 124M", num_examples=100_000, length=512))


if __name__ == "__main__":
    main()
