"""What an index of plain gradients must say: autograd, one row at a time."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorif_hf import InfluenceConfig, InfluenceIndex


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.autograd import row_gradients, tracked_weights


GRADIENTS = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")
"""Stores every gradient as it is; a score is an inner product."""


def alone(row: Mapping[str, Any]) -> dict[str, Tensor]:
    """A row as a batch of its own; without labels, its tokens are labels."""
    batch = {key: torch.tensor([value]) for key, value in row.items() if not isinstance(value, str)}
    return batch if {"labels", "start_positions"} & batch.keys() else batch | {"labels": batch["input_ids"]}


def own_sum(model: nn.Module, row: Mapping[str, Any]) -> Tensor:
    """transformers' own loss of a row, summed over its shifted targets."""
    return model(**alone(row), num_items_in_batch=torch.tensor(1)).loss


def gram(
    index: InfluenceIndex, model: nn.Module, rows: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor] = own_sum
) -> Tensor:
    """Inner products of the rows' gradients in the layers that the index says it tracks, float64 (N, N)."""
    weights = list(tracked_weights(index, model).values())
    flags = [weight.requires_grad for weight in weights]
    training = model.training
    model.eval()
    for weight in weights:
        weight.requires_grad_(True)
    gradients = []
    for row in rows:
        gradients.append(torch.cat(list(row_gradients(index, model, loss(model, row)).values())))
    for weight, flag in zip(weights, flags, strict=True):
        weight.requires_grad_(flag)
    model.train(training)
    stacked = torch.stack(gradients)
    return stacked @ stacked.T


def relative_error(index, model, rows, loss: Callable[[nn.Module, Any], Tensor] = own_sum) -> float:
    """max |index's grad-dot - autograd's| / max |autograd's|; the training rows are the queries."""
    expected = gram(index, model, rows, loss)
    scores = index.scores(model, [dict(row) for row in rows]).double()
    return float((scores - expected).abs().max() / expected.abs().max())
