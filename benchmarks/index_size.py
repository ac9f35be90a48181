"""How big an index of GPT-2 124M gets: the README's table. Builds the model on the meta device, so nothing is loaded.

python benchmarks/index_size.py
"""

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf import InfluenceConfig
from lorif_hf.recording.modules import tracked_modules


EXAMPLES = 100_000


def main() -> None:
    with torch.device("meta"):
        layers = tracked_modules(GPT2LMHeadModel(GPT2Config()))
    table = Table("", "bytes per example", f"N = {EXAMPLES:,}", "curvature", title=f"GPT-2 124M, {len(layers)} layers")
    for factor in (4, 16):
        config = InfluenceConfig(projection_factor=factor)
        shapes = [config.projected_shape(layer.in_features, layer.out_features) for layer in layers]
        factors = sum(2 * config.factor_rank * (d1 + d2) for d1, d2 in shapes)
        curvature = sum(4 * d1 * d2 * min(config.curvature_rank, d1 * d2, EXAMPLES) for d1, d2 in shapes)
        table.add_row(
            f"rank-1 factors, f = {factor}",
            f"{factors:,}",
            f"{factors * EXAMPLES / 1e9:,.1f} GB",
            f"{curvature / 1e9:.1f} GB",
        )
        if factor == 4:
            dense = sum(2 * d1 * d2 for d1, d2 in shapes)
            table.add_row("dense, f = 4 (LoGRA)", f"{dense:,}", f"{dense * EXAMPLES / 1e9:,.0f} GB", "-")
    Console().print(table)


if __name__ == "__main__":
    main()
