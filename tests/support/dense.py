"""Per-example gradients by one ordinary backward pass each, in float64: what every index is checked against."""

import torch
import torch.nn.functional as F
from datasets import Dataset
from projections import rademacher
from tiny import VOCABULARY, make_gpt2, make_rows
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification

from lorif_hf.algebra.projection import SparseProjection


def make_classifier(seed: int = 0) -> GPT2ForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2, "num_labels": 3}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=0, bos_token_id=None, eos_token_id=None))
    torch.nn.init.normal_(model.score.weight, std=0.5)  # the head starts so small that all classes are alike
    return model.eval()


def make_task(kind: str, count: int) -> tuple[torch.nn.Module, Dataset]:
    """A tiny Conv1D model and rows for it: "causal-lm" or "classifier"."""
    rows = make_rows(count)
    if kind == "causal-lm":
        return make_gpt2(), rows
    return make_classifier(), rows.add_column("label", [i % 3 for i in range(count)])


def predictions(model: torch.nn.Module, row: dict) -> tuple[Tensor, Tensor]:
    """Logits (T, classes) and targets (T,) of one row."""
    ids = torch.tensor([row["input_ids"]])
    logits = model(input_ids=ids).logits
    if "label" in row:
        return logits, torch.tensor([row["label"]])
    return logits[0, :-1], ids[0, 1:]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


def minus_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """- sum of log(p / (1 - p)), as it stands in the paper."""
    p = logits.softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return -torch.log(p / (1 - p)).sum()


def doubts(model: torch.nn.Module, rows: Dataset) -> Tensor:
    """(N,) mean of 1 - p over each row's targets."""
    model, found = model.double(), []
    for row in rows:
        logits, targets = predictions(model, row)
        found.append(1 - logits.softmax(dim=-1).gather(1, targets[:, None]).mean().detach())
    return torch.stack(found)


def gradients(model: torch.nn.Module, rows: Dataset, names: list[str], objective=loss) -> dict[str, Tensor]:
    """Per module (N, I, O), float64."""
    model = model.double()
    weights = dict(model.named_parameters())
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for row in rows:
        model.zero_grad()
        objective(*predictions(model, row)).backward()
        for name in names:
            found[name].append(weights[f"{name}.weight"].grad.clone())
    return {name: torch.stack(some) for name, some in found.items()}


def two_sided(module, gradient: Tensor, seed: int = 0) -> Tensor:
    """P_in^T G P_out with the explicit matrices of a manifest's module."""
    for side, size, target in (
        ("in", module.in_features, module.d1),
        ("out", module.out_features, module.d2),
    ):
        if target != size:
            matrix = rademacher(size, target, seed=seed, name=f"{module.name}/{side}").double()
            gradient = matrix.T @ gradient if side == "in" else gradient @ matrix
    return gradient


def global_matrix(modules, target: int, seed: int = 0) -> Tensor:
    """P (all weights, target) of a global projection, with its zeros."""
    parts = []
    for module in modules:
        size = module.in_features * module.out_features
        drawn = SparseProjection.draw(size, target, seed=seed, name=f"{module.name}/global")
        part = torch.zeros(size, target, dtype=torch.float64)
        part[torch.arange(size), drawn.columns] = drawn.signs.double()
        parts.append(part)
    return torch.cat(parts)


def damped_inverse(gradients: Tensor, damping: float) -> Tensor:
    """(sum g g^T + damping trace / D I)^-1 of gradients (N, D), as a D x D matrix."""
    gram = gradients.T @ gradients
    eye = torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.inv(gram + damping * gram.trace() / len(gram) * eye)


def off(found: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((found.double() - expected).norm() / expected.norm())
