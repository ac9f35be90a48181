"""How near the stored scores of a wide layer come to the whole K-FAC influence, at equal bytes: which width is best.

    python -m benchmarks.fidelity            # prints the tables, writes benchmarks/results/fidelity.json

Fidelity is the mean over queries of the correlation, over rows, of a layer's scores with those of exact K-FAC: both
sides whitened by the layer's damped second moments at its full width, nothing projected, cut or rounded. What is
stored is c pairs of vectors at `bits` bits of gradients whose sides are projected to min(I / f, M); the query is
whole.

Two layers of 768 and 3,072 are those of a GPT-2 of two blocks, trained for a hundred steps on WikiText-2; those of
2,048 and 4,096 are made (see `synthetic_layer`). A quiet core takes about ten minutes.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf.algebra.matrices import LowRankMatrices
from lorif_hf.algebra.projection import TwoSidedProjection, project
from lorif_hf.algebra.quantization import fitted_scales, quantized_factors
from lorif_hf.algebra.whitening import damped_whitener

from .quality import RESULTS
from .wikitext import VOCABULARY, TestBed


DAMPING = 0.1
WIDTH, STEPS, TOKENS, ROWS, QUERIES = 768, 100, 128, 200, 30  # of the trained model and its layers
MADE = {2048: (192, 20), 4096: (128, 16)}  # by width, rows and queries of 64 tokens
WIDTHS = (256, 512, 640, 768, 1024, 2048)
DEFAULT = 768
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
BUDGETS = (384, 576, 768, 1152, 1536, 3072, 6144)  # bytes of a layer

Root = Callable[[Tensor], Tensor]
Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layer:
    """Inputs (n, T, I) and output gradients (n, T, O) of a layer's rows and queries."""

    name: str
    rows: Sides
    queries: Sides

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[0].shape[2], self.rows[1].shape[2]


def trained_layers(folder: Path) -> list[Layer]:
    """The output projection of the attention and the first layer of the feed-forward network, of the last block."""
    blocks = [block for name in ("test.txt", "valid.txt") for block in TestBed(folder).blocks(name)]
    ids = torch.tensor(blocks).flatten()
    ids = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    trained, asked = ids[:-QUERIES], ids[-QUERIES:]
    path = folder / f"width-{WIDTH}"
    if not path.exists():
        _train(trained).save_pretrained(path)
    model = GPT2LMHeadModel.from_pretrained(path).eval()
    names = ["attn.c_proj", "mlp.c_fc"]
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}

    def record(name: str) -> Callable[..., None]:
        def hook(_: object, args: tuple[Tensor], output: Tensor) -> None:
            inputs[name].append(args[0].detach())
            output.register_hook(gradients[name].append)

        return hook

    for name in names:
        model.get_submodule(f"transformer.h.1.{name}").register_forward_hook(record(name))
    for batch in torch.cat([trained[:ROWS], asked]).split(10):
        logits = model(input_ids=batch).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
    layers = []
    for name in names:
        x, dy = torch.cat(inputs[name]), torch.cat(gradients[name])
        shape = f"{x.shape[2]} x {dy.shape[2]}"
        layers.append(Layer(f"GPT-2's {name}, {shape}", (x[:ROWS], dy[:ROWS]), (x[ROWS:], dy[ROWS:])))
    return layers


def _train(ids: Tensor) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=WIDTH, n_layer=2, n_head=12, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 10, 2 * (STEPS - step) / STEPS)
        batch = ids[torch.arange(8 * step, 8 * step + 8) % len(ids)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def synthetic_layer(width: int, rows: int, queries: int, tokens: int = 64) -> Layer:
    """A made layer: words of a Zipfian vocabulary with a vector each, topics that rows share, power-law spectra of
    inputs and output gradients, some large coordinates, and sizes of tokens with heavy tails."""
    generator = torch.Generator().manual_seed(width)
    count, words, topics = rows + queries, 3000, 40
    zipf = 1 / torch.arange(1, words + 1).double()
    ids = torch.multinomial(zipf, count * tokens, replacement=True, generator=generator).view(count, tokens)
    topic = torch.randint(topics, (count, 3), generator=generator)
    special = torch.rand(count, tokens, generator=generator) < 0.3  # words that are the topic's
    ids = torch.where(special, (topic[:, :1] * 37 + ids) % words, ids)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def side(ids: Tensor) -> Tensor:
        vectors = draw(words, width)[ids] + draw(topics, width)[topic].mean(dim=1, keepdim=True)
        vectors = (vectors + draw(count, tokens, width)) * torch.arange(1, width + 1).rsqrt()
        return _rotated(vectors, generator) * (0.7 * draw(width)).exp()

    inputs, outputs = side(ids), side(ids.roll(-1, dims=1)) * draw(count, tokens, 1).exp()
    name = f"made, {width} x {width}"
    return Layer(name, (inputs[:rows], outputs[:rows]), (inputs[rows:], outputs[rows:]))


def _rotated(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """By a random orthogonal matrix: signs and a Hadamard transform, twice; the size is a power of two."""
    size = vectors.shape[-1]
    for _ in range(2):
        vectors = vectors * (torch.randint(2, (size,), generator=generator) * 2 - 1)
        step = 1
        while step < size:
            a, b = vectors.unflatten(-1, (-1, 2, step)).unbind(-2)
            vectors = torch.stack([a + b, a - b], dim=-2).flatten(-3)
            step *= 2
        vectors = vectors / size**0.5
    return vectors


def rotated_root(moment: Tensor) -> Tensor:
    """What the library whitens with."""
    return damped_whitener(moment, DAMPING)


def cholesky_root(moment: Tensor) -> Tensor:
    """The same before its rotation, upper triangular."""
    factor = torch.linalg.cholesky(_damped(moment))
    return torch.linalg.solve_triangular(factor, torch.eye(len(moment)).double(), upper=False).T.float()


def symmetric_root(moment: Tensor) -> Tensor:
    """The symmetric one."""
    values, vectors = torch.linalg.eigh(_damped(moment))
    return ((vectors * values.rsqrt()) @ vectors.T).float()


def _damped(moment: Tensor) -> Tensor:
    moment = moment.double()
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment))


def whitened(rows: Tensor, others: Tensor, root: Root) -> Sides:
    """Tokens of the rows and of the queries, by the second moment of the rows'."""
    tokens = rows.flatten(0, 1)
    whitener = root(tokens.T @ tokens)
    return rows @ whitener, others @ whitener


def exact_scores(layer: Layer) -> Tensor:
    """(Q, N) of K-FAC at the full width. Which root is taken makes no difference here."""
    sides = [whitened(rows, queries, cholesky_root) for rows, queries in zip(layer.rows, layer.queries, strict=True)]
    (x, xq), (dy, dyq) = sides
    scores = torch.empty(len(xq), len(x))
    for query in range(len(xq)):
        grams = (x.flatten(0, 1) @ xq[query].T) * (dy.flatten(0, 1) @ dyq[query].T)
        scores[query] = grams.sum(dim=1).view(len(x), -1).sum(dim=1)
    return scores


@dataclass(frozen=True)
class Way:
    """One way to store a layer: sides of min(I / f, M), folded or by a matrix of signs, whitened by some root."""

    width: int | None = None
    factor: int = 1
    bits: int = 1
    fold: bool = True
    root: Root = field(default=rotated_root)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "root": self.root.__name__}

    def prepared(self, layer: Layer) -> tuple[Sides, Sides]:
        """Rows' and queries' tokens, projected and whitened."""
        targets = [min(size // self.factor, self.width or size) for size in layer.shape]
        drawn = TwoSidedProjection.draw(
            layer.shape, (targets[0], targets[1]), seed=0, name=layer.name, folded=(self.fold, self.fold)
        ).to(torch.device("cpu"), torch.float32)
        sides = [
            whitened(project(rows, signs), project(queries, signs), self.root)
            for signs, rows, queries in zip((drawn.in_signs, drawn.out_signs), layer.rows, layer.queries, strict=True)
        ]
        (x, xq), (dy, dyq) = sides
        return (x, dy), (xq, dyq)


def stored_scores(
    rows: Sides, queries: Sides, ranks: Sequence[int], bits: int, batch: int = 32
) -> dict[int, tuple[Tensor, Tensor]]:
    """By c, the scores (Q, N) of rows stored as c pairs at `bits` bits before they are divided by the share of each
    row's energy that is in them, and those shares (N,).

    The pairs are fitted one after the other, so that those of a smaller c are the first ones.
    """
    (x, dy), (xq, dyq) = rows, queries
    most = max(ranks)
    scores: dict[int, list[Tensor]] = {rank: [] for rank in ranks}
    shares: dict[int, list[Tensor]] = {rank: [] for rank in ranks}
    for start in range(0, len(x), batch):
        left, right = x[start : start + batch].mT, dy[start : start + batch].mT  # (n, d, T)
        squares = ((left.mT @ left) * (right.mT @ right)).double().sum(dim=(1, 2))
        u, v, *_ = quantized_factors(LowRankMatrices(left, right, squares), most, bits)
        targets = ((u.mT @ left) * (v.mT @ right)).sum(dim=2)
        products = torch.stack(
            [
                ((a @ u.mT.flatten(0, 1).T) * (b @ v.mT.flatten(0, 1).T)).sum(dim=0).view(len(u), most)
                for a, b in zip(xq, dyq, strict=True)
            ]
        )
        for rank in ranks:
            scales = fitted_scales(u[:, :, :rank], v[:, :, :rank], targets[:, :rank])
            scores[rank].append((products[:, :, :rank] * scales).sum(dim=2))
            shares[rank].append((scales * targets[:, :rank]).sum(dim=1) / squares)
    return {rank: (torch.cat(scores[rank], dim=1), torch.cat(shares[rank])) for rank in ranks}


def fidelity(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean over queries of Pearson's and Spearman's correlation."""
    pearson = _correlation(scores.double(), truth.double())
    spearman = _correlation(*(each.argsort(dim=1).argsort(dim=1).double() for each in (scores, truth)))
    return pearson, spearman


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (a, b))
    return float(((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))).mean())


def ways(layer: Layer) -> dict[str, Way]:
    """The ways that are compared on a layer."""
    table = {"f = 1, symmetric root (before)": Way(root=symmetric_root), "f = 1": Way()}
    for factor in (2, 4):
        table[f"f = {factor}"] = Way(factor=factor, fold=False)
    for width in WIDTHS:
        if width < max(layer.shape):
            table[f"M = {width}"] = Way(width)
    table[f"M = {DEFAULT}, signs instead of folding"] = Way(DEFAULT, fold=False)
    table[f"M = {DEFAULT}, symmetric root"] = Way(DEFAULT, root=symmetric_root)
    table[f"M = {DEFAULT}, Cholesky factor alone"] = Way(DEFAULT, root=cholesky_root)
    table[f"M = {DEFAULT}, 2 bits"] = Way(DEFAULT, bits=2)
    table[f"M = {DEFAULT}, 4 bits"] = Way(DEFAULT, bits=4)
    return table


def curve(layer: Layer, way: Way, truth: Tensor) -> list[dict[str, float]]:
    """Of each c: bytes, correlations as stored and with the least-squares scales, and the mean share held."""
    rows, queries = way.prepared(layer)
    numbers = rows[0].shape[2] + rows[1].shape[2]
    points = []
    for rank, (scores, shares) in stored_scores(rows, queries, RANKS, way.bits).items():
        pearson, spearman = fidelity(scores / shares, truth)
        least_squares, _ = fidelity(scores, truth)
        points.append(
            {
                "c": rank,
                "bytes": rank * numbers * way.bits / 8,
                "pearson": pearson,
                "spearman": spearman,
                "pearson_of_least_squares": least_squares,
                "share": float(shares.mean()),
            }
        )
    return points


def at_bytes(points: Sequence[dict[str, float]], size: float, what: str) -> float:
    """A correlation at so many bytes, between two c linearly in their logarithm; NaN outside of the curve."""
    for low, high in pairwise(points):
        if low["bytes"] <= size <= high["bytes"]:
            part = math.log(size / low["bytes"]) / math.log(high["bytes"] / low["bytes"])
            return (1 - part) * low[what] + part * high[what]
    return math.nan


def layers_of(folder: Path) -> Iterator[Layer]:
    """The layers, one at a time: each takes up to a gigabyte."""
    yield from trained_layers(folder)
    for width, (rows, queries) in MADE.items():
        yield synthetic_layer(width, rows, queries)


def main(
    folder: Annotated[Path, typer.Option(help="Where the trained model is kept.")] = Path("benchmark-output/fidelity"),
    results: Annotated[Path, typer.Option(help="The file to write.")] = RESULTS / "fidelity.json",
) -> None:
    written: dict[str, Any] = {"damping": DAMPING, "layers": {}}
    for layer in layers_of(folder):
        truth = exact_scores(layer)
        table = Table("stored", *(f"{budget:,}" for budget in BUDGETS), title=f"{layer.name}: Pearson at bytes")
        curves = written["layers"][layer.name] = {}
        for name, way in ways(layer).items():
            points = curve(layer, way, truth)
            curves[name] = {"way": way.to_dict(), "points": points}
            table.add_row(name, *(_shown(at_bytes(points, budget, "pearson")) for budget in BUDGETS))
            results.write_text(json.dumps(written, indent=2) + "\n")
        Console(width=140).print(table)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    typer.run(main)
