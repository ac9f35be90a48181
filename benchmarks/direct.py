"""LDS of our LoGRA and published LoRIF on bed (a), beside a direct dense computation from the papers' formulas.

    python -m benchmarks.direct    # after benchmarks.quality wikitext, whose models and bank it takes

The direct one shares what is drawn at random with ours (projections, the start of the power iteration) and nothing
else: each example's weight gradient by a backward pass of its own, projected and inverted in float64; LoRIF's factors
by the eight rounds of power iteration that its authors take. These do not always converge: two further rows show
what another start makes of it, and the singular value decomposition that the rounds near.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.projection import draw_signs
from lorif_hf.evaluation import retrain
from lorif_hf.evaluation.lds import lds
from lorif_hf.layers.selection import tracked_modules

from .machine import machine
from .quality import RESULTS
from .references import spearman
from .wikitext import TestBed


PUBLISHED = "LoRIF as published, c = 1"


def projected_gradients(model: Any, rows: Any, config: InfluenceConfig) -> dict[str, Tensor]:
    """P_in^T G P_out of every row by layer, float64 (n, d1, d2): G is the gradient of its token-summed loss."""
    gradients: dict[str, list[Tensor]] = {}
    layers = {}
    for tracked in tracked_modules(model):
        shape = tracked.shape.in_features, tracked.shape.out_features
        sides = zip(("in", "out"), shape, config.projected_shape(*shape), strict=True)
        layers[tracked.name] = (
            tracked.module,
            [
                draw_signs((full, d), seed=config.seed, name=f"{tracked.name}/{side}").double() / d**0.5
                for side, full, d in sides
            ],
        )
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        model.zero_grad()
        logits = model(input_ids=ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
        for name, (module, (left, right)) in layers.items():
            gradients.setdefault(name, []).append(left.T @ module.weight.grad.double() @ right)  # Conv1D: I x O
    return {name: torch.stack(of_rows) for name, of_rows in gradients.items()}


def logra(train: Tensor, queries: Tensor, config: InfluenceConfig) -> Tensor:
    """g_q^T (sum g g^T + lambda I)^-1 g_i of one layer; lambda is `damping` times the mean eigenvalue."""
    g, q = train.flatten(1), queries.flatten(1)
    hessian = g.T @ g
    hessian.diagonal().add_(config.damping * float(hessian.trace()) / len(hessian))
    return q @ torch.linalg.solve(hessian, g.T)


def power_iteration(matrices: Tensor, seed: int) -> Tensor:
    """u u^T G of each matrix (n, d1, d2), u its strongest left direction after eight rounds."""
    start = torch.randn(matrices.shape[2], 1, generator=torch.Generator().manual_seed(seed), dtype=matrices.dtype)
    left = matrices @ start
    for _ in range(8):
        left = matrices @ (matrices.mT @ (left / left.norm(dim=1, keepdim=True)))
    left = left / left.norm(dim=1, keepdim=True)
    return left @ (left.mT @ matrices)


def singular_pair(matrices: Tensor) -> Tensor:
    """The nearest matrix of rank one to each (n, d1, d2)."""
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    return (u[:, :, :1] * s[:, None, :1]) @ v[:, :1]


def lorif(train: Tensor, queries: Tensor, config: InfluenceConfig, cut: Callable[[Tensor], Tensor]) -> Tensor:
    """The same of rank-1 gradients on both sides, of whose Hessian the top r eigenpairs are kept."""
    g, q = cut(train).flatten(1), cut(queries).flatten(1)
    damping = config.damping * float(g.square().sum()) / g.shape[1]
    values, vectors = torch.linalg.eigh(g @ g.T)
    kept = slice(max(0, len(values) - (config.curvature_rank or len(values))), None)
    values, vectors = values[kept].clamp_min(1e-300), vectors[:, kept]
    basis = (g.T @ vectors) / values.sqrt()
    inside = (q @ basis) * (values / (values + damping))
    return (q @ g.T - inside @ (basis.T @ g.T)) / damping


def main(
    folder: Annotated[Path, typer.Option(help="Of the wikitext bed.")] = Path("benchmark-output/wikitext"),
) -> None:
    bed = TestBed(folder)
    train, queries = bed.split()
    bank = retrain(bed.make_trainer, train, queries, folder / "bank", processing_class=bed.tokenizer)
    model = bed.finetuned().eval()
    table = Table("", "LDS", "LDS, directly", "difference", "Spearman of the scores", title=machine())
    rows = {}
    theirs, asked = (projected_gradients(model, dataset, InfluenceConfig.logra()) for dataset in (train, queries))
    for config, formulas in (
        (InfluenceConfig.logra(), {"LoGRA, f = 4": logra}),
        (
            InfluenceConfig.paper(),
            {
                PUBLISHED: partial(lorif, cut=partial(power_iteration, seed=0)),
                f"{PUBLISHED}; another start": partial(lorif, cut=partial(power_iteration, seed=1)),
                f"{PUBLISHED}; directly by SVD": partial(lorif, cut=singular_pair),
            },
        ),
    ):
        with tempfile.TemporaryDirectory() as place:
            index = InfluenceIndex.build(model, train, Path(place) / "index", config=config, batch_size=25)
            ours = index.scores(model, queries)
        of_index = lds(ours, bank.losses, bank.membership).mean
        for name, formula in formulas.items():
            direct = torch.stack([formula(theirs[layer], asked[layer], config) for layer in theirs]).sum(dim=0)
            of_direct = lds(direct, bank.losses, bank.membership).mean
            rows[name] = {
                "lds": of_index,
                "direct": of_direct,
                "difference": of_index - of_direct,
                "spearman": spearman(ours, direct),
            }
            table.add_row(
                name,
                f"{of_index:.4f}",
                f"{of_direct:.4f}",
                f"{of_index - of_direct:+.4f}",
                f"{rows[name]['spearman']:.5f}",
            )
    (RESULTS / "direct.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
