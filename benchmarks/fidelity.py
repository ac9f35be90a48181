"""How near the stored scores of a wide layer come to the whole K-FAC influence, at equal bytes: which width is best.

    python -m benchmarks.fidelity            # prints the tables, writes benchmarks/results/fidelity.json

Fidelity is the mean over queries of the correlation, over rows, of a layer's scores with those of exact K-FAC: both
sides whitened by the layer's damped second moments at its full width, nothing projected, cut or rounded. What is
stored is c pairs of vectors at `bits` bits of gradients whose sides are projected to min(I / f, M).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf.algebra.matrices import LowRankMatrices
from lorif_hf.algebra.projection import BlockSigns, draw_signs, project
from lorif_hf.algebra.quantization import fitted_scales, quantized_factors

from .wikitext import VOCABULARY, TestBed


DAMPING = 0.1


@dataclass(frozen=True)
class Layer:
    """Inputs (n, T, I) and output gradients (n, T, O) of a layer's rows and queries."""

    name: str
    rows: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[0].shape[2], self.rows[1].shape[2]


def trained_layers(folder: Path, rows: int = 200, queries: int = 30, steps: int = 120, tokens: int = 128) -> list[Layer]:
    """Layers of a GPT-2 of two blocks of real width, 768 and 3,072, trained a minute or two on WikiText-2."""
    bed = TestBed(folder)
    blocks = [block for name in ("test.txt", "valid.txt") for block in bed.blocks(name)]
    ids = torch.tensor(blocks).flatten()
    ids = ids[: len(ids) // tokens * tokens].view(-1, tokens)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    ids = ids[order]
    path = folder / f"wide-{steps}"
    if not path.exists():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=tokens, n_embd=768, n_layer=2, n_head=12,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 10, (steps - step) / (0.5 * steps))
            start = 8 * step % (len(ids) - queries - 8)
            batch = ids[start : start + 8]
            loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 20 == 0 or step == steps - 1:
                print(f"step {step}: loss {loss:.3f}", flush=True)
        model.save_pretrained(path)
    model = GPT2LMHeadModel.from_pretrained(path).eval()
    names = ["transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj", "transformer.h.0.mlp.c_fc"]
    sides: dict[str, list[list[Tensor]]] = {name: [[], []] for name in names}
    handles = []
    for name in names:

        def hook(_: object, args: tuple[Tensor], output: Tensor, name: str = name) -> None:
            sides[name][0].append(args[0].detach())
            output.register_hook(lambda gradient: sides[name][1].append(gradient.detach()))

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    chosen = torch.cat([ids[:rows], ids[len(ids) - queries :]])  # the queries are not trained on
    for batch in chosen.split(10):
        logits = model(input_ids=batch).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    layers = []
    for name, (inputs, outputs) in sides.items():
        x, dy = torch.cat(inputs), torch.cat(outputs)
        layers.append(Layer(name.removeprefix("transformer."), (x[:rows], dy[:rows]), (x[rows:], dy[rows:])))
    return layers


def synthetic_layer(size_in: int, size_out: int, rows: int = 256, queries: int = 24, tokens: int = 64) -> Layer:
    """A made layer: words of a Zipfian vocabulary with a vector each, topics that rows share, power-law spectra of
    inputs and output gradients, some large coordinates, and sizes of tokens with heavy tails."""
    generator = torch.Generator().manual_seed(size_in + size_out)
    count, words, topics = rows + queries, 3000, 40
    zipf = 1 / torch.arange(1, words + 1).double()
    ids = torch.multinomial(zipf, count * tokens, replacement=True, generator=generator).view(count, tokens)
    topic = torch.randint(topics, (count, 3), generator=generator)
    special = torch.rand(count, tokens, generator=generator) < 0.3  # words that are the topic's
    ids = torch.where(special, (topic[:, :1] * 37 + ids) % words, ids)

    def side(size: int, power: float, shift: Tensor) -> Tensor:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        spectrum = torch.arange(1, size + 1).pow(-power / 2)
        vectors = draw(words, size)[shift]
        vectors = vectors + draw(topics, size)[topic].mean(dim=1, keepdim=True)
        vectors = (vectors + 1.0 * draw(count, tokens, size)) * spectrum
        rotated = _rotated(vectors, generator)
        return rotated * (0.7 * draw(size)).exp()

    inputs = side(size_in, 1.0, ids)
    outputs = side(size_out, 1.0, ids.roll(-1, dims=1))
    outputs = outputs * torch.randn(count, tokens, 1, generator=generator).exp()
    return Layer(f"synthetic {size_in} x {size_out}", (inputs[:rows], outputs[:rows]), (inputs[rows:], outputs[rows:]))


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


def cholesky_root(moment: Tensor) -> Tensor:
    """W (d, d) with W^T M W = 1, upper triangular: x -> x W."""
    triangle = torch.linalg.cholesky(damped(moment))
    return torch.linalg.solve_triangular(triangle, torch.eye(len(moment), dtype=triangle.dtype), upper=False).T.float()


def symmetric_root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(damped(moment))
    return ((vectors * values.rsqrt()) @ vectors.T).float()


def damped(moment: Tensor) -> Tensor:
    moment = moment.double()
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def whitened(rows: Tensor, others: Tensor, root: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
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


def dense_side(source: int, target: int, name: str) -> Callable[[Tensor], Tensor]:
    signs = draw_signs((source, target), seed=0, name=name).float()
    return lambda vectors: project(vectors, signs)


def fold_side(source: int, target: int, name: str) -> Callable[[Tensor], Tensor]:
    signs = BlockSigns.draw(1, source, target, seed=0, name=name)
    return lambda vectors: project(vectors, signs)


def prepared(
    layer: Layer,
    most: int | None,
    factor: int = 1,
    side_of: Callable[[int, int, str], Callable[[Tensor], Tensor]] = fold_side,
    root: Callable[[Tensor], Tensor] = symmetric_root,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows' and queries' tokens, projected to min(I / f, most) and whitened there."""
    sides = []
    for place, rows, queries in zip(("in", "out"), layer.rows, layer.queries, strict=True):
        source = rows.shape[2]
        target = min(source // factor, most or source)
        if target < source:
            projected = side_of(source, target, f"{layer.name}/{place}")
            rows, queries = projected(rows), projected(queries)
        sides.append(whitened(rows, queries, root))
    (x, xq), (dy, dyq) = sides
    return (x, dy), (xq, dyq)


def stored_scores(
    rows: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], ranks_: Sequence[int], bits: int, batch: int = 32
) -> dict[int, tuple[Tensor, Tensor]]:
    """By c, the scores (Q, N) of rows stored as c pairs at `bits` bits, and the share of each row's energy that is
    in them (N,).

    The pairs are fitted one after the other, so that those of a smaller c are the first ones.
    """
    (x, dy), (xq, dyq) = rows, queries
    most = max(ranks_)
    scores: dict[int, list[Tensor]] = {rank: [] for rank in ranks_}
    shares: dict[int, list[Tensor]] = {rank: [] for rank in ranks_}
    for start in range(0, len(x), batch):
        left, right = x[start : start + batch].mT, dy[start : start + batch].mT  # (n, d, T)
        squares = ((left.mT @ left) * (right.mT @ right)).double().sum(dim=(1, 2))
        u, v, *_ = quantized_factors(LowRankMatrices(left, right, squares), most, bits)
        targets = ((u.mT @ left) * (v.mT @ right)).sum(dim=2)
        # (Q, T, n, c)
        products = torch.stack(
            [
                ((a @ u.mT.flatten(0, 1).T) * (b @ v.mT.flatten(0, 1).T)).sum(dim=0).view(len(u), most)
                for a, b in zip(xq, dyq, strict=True)
            ]
        )
        for rank in ranks_:
            scales = fitted_scales(u[:, :, :rank], v[:, :, :rank], targets[:, :rank])
            scores[rank].append((products[:, :, :rank] * scales).sum(dim=2))
            shares[rank].append((scales * targets[:, :rank]).sum(dim=1) / squares)
    return {rank: (torch.cat(scores[rank], dim=1), torch.cat(shares[rank])) for rank in ranks_}


def fidelity(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean over queries of Pearson's and Spearman's correlation."""
    pearson = _correlation(scores.double(), truth.double())
    spearman = _correlation(*(torch.stack([row.argsort().argsort() for row in each]).double() for each in (scores, truth)))
    return pearson, spearman


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (a, b))
    return float(((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))).mean())
