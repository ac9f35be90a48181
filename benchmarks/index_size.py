"""How big an index of GPT-2 124M gets: the README's table. Builds the model on the meta device, so nothing is loaded.

python -m benchmarks.index_size
"""

import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf.estimating.tables import estimate_table, machine_of


def main() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    table, _ = estimate_table(model, "GPT-2 124M", 100_000, 512, machine_of(None, None, None))
    Console().print(table)


if __name__ == "__main__":
    main()
